//! Texts that many objects have alike: one of each.

use std::{collections::HashSet, sync::Arc};

/// As many are kept at least before it is looked which of them nobody has any more.
const FEW: usize = 32;

/// One of each.
#[derive(Debug, Default)]
pub struct Shapes {
    all: HashSet<Arc<str>>,
    /// With so many it is looked which are in use.
    full: usize,
}

impl Shapes {
    /// The one that says the same.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.all.get(text) {
            return known.clone();
        }
        if self.all.len() >= self.full {
            self.all.retain(|text| Arc::strong_count(text) > 1);
            self.full = FEW.max(self.all.len() * 2);
        }
        let text: Arc<str> = text.into();
        self.all.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_the_same_is_the_same() {
        let mut shapes = Shapes::default();
        let one = shapes.share("a");
        assert!(Arc::ptr_eq(&one, &shapes.share("a")));
        assert!(!Arc::ptr_eq(&one, &shapes.share("b")));
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let mut shapes = Shapes::default();
        let kept = shapes.share("kept");
        for number in 0..FEW * 4 {
            shapes.share(&number.to_string());
        }
        assert!(shapes.all.len() <= FEW + 1, "{}", shapes.all.len());
        assert!(Arc::ptr_eq(&kept, &shapes.share("kept")));
    }
}
