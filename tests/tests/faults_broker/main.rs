//! A broker, or the way to it, that breaks: what clients see of it, and that the gateway comes back by itself and
//! holds no more than before.

mod answers;
mod links;
mod reconnects;
