//! Clients that do what no client should: too much, the wrong thing, or in another's name. None of them harms another,
//! and what they used is given back.

mod floods;
mod forgeries;
mod many;
mod payloads;
