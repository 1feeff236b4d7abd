//! The gateway itself ends, in order or not, at every point of a session's life; and it lives within the memory that
//! its container has.

mod ends;
mod memory;
