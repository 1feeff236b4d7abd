//! What a server sends, made into events.
