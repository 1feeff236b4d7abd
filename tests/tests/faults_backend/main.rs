//! A server that breaks, and what its clients see of it. Each test ends with what the gateway holds given back.

mod crashes;
mod garbage;
mod http;
mod http_faults;
