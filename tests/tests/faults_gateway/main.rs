//! The gateway itself ends, in order or not, at every point of a session's life; and it lives within the memory and
//! the descriptors that it has.

mod descriptors;
mod ends;
mod memory;
