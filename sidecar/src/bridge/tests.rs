//! What the tests of the bridge have in common.

pub(super) mod shorthand;
