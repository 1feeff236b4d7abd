//! Resource versions: whether a store, which a watch fills, knows of a write of ours yet.

/// Whether a store that has the object at version `known` is behind a write that found `before` there and was answered
/// with `after`; none: no such object. Versions of one kind are decimal numbers that grow (Kubernetes, KEP-5504). Of
/// others nothing is known, but that a store that has what it had is behind.
pub(super) fn is_behind(known: Option<&str>, before: Option<&str>, after: Option<&str>) -> bool {
    let number = |version: Option<&str>| version?.parse::<u64>().ok();
    match (number(known), number(after)) {
        (Some(known), Some(after)) => known < after,
        _ => known == before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_behind_until_it_has_the_write_or_a_later_one() {
        let behind = |known| is_behind(Some(known), Some("8"), Some("10"));
        assert!(behind("8") && behind("9"), "9: what others wrote in between");
        assert!(!behind("10") && !behind("11"));
    }

    #[test]
    fn without_numbers_it_is_behind_while_it_has_what_it_had() {
        assert!(is_behind(None, None, Some("10")), "there was no object");
        assert!(!is_behind(None, Some("8"), Some("10")), "it was deleted since");
        for after in [None, Some("b")] {
            assert!(is_behind(Some("a"), Some("a"), after));
            assert!(!is_behind(Some("9"), Some("8"), after));
        }
    }
}
