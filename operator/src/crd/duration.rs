//! Durations as people write them: `500ms`, `30s`, `1m30s`.

use std::{borrow::Cow, time::Duration};

use kube::core::{Rule, validate};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A duration; the schema's rules and [`Self::parse`] take the same texts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// A text as a duration, unchecked.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The duration.
    ///
    /// # Errors
    /// A text that is no duration: an object written before the rules, or past them.
    pub fn parse(&self) -> Result<Duration, humantime::DurationError> {
        humantime::parse_duration(&self.0)
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Five digits a unit: more would overflow CEL's duration() and end in an error nobody can read.
        let mut schema = json_schema!({"type": "string", "minLength": 1, "maxLength": 16});
        for rule in [
            Rule::new(format!("self.matches('{FORM}')"))
                .message("must be a duration such as 500ms, 30s or 1m30s"),
            Rule::new(format!("!self.matches('{FORM}') || (duration(self) >= duration('1s') && duration(self) <= duration('18h'))"))
                .message("must be between 1s and 18h"),
        ] {
            validate(&mut schema, rule).expect("a rule is plain data");
        }
        schema
    }
}

/// A duration of at least so much.
pub(super) fn at_least(generator: &mut SchemaGenerator, least: &str, message: &str) -> Schema {
    let mut schema = DurationText::json_schema(generator);
    let rule = Rule::new(format!("!self.matches('{FORM}') || duration(self) >= duration('{least}')"));
    validate(&mut schema, rule.message(message)).expect("a rule is plain data");
    schema
}

const FORM: &str = "^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?([0-9]{1,5}ms)?$";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rule_takes_is_a_duration_here_too() {
        for (text, seconds) in
            [("1s", 1.0), ("500ms", 0.5), ("1m30s", 90.0), ("18h", 64_800.0), ("1h1m1s1ms", 3661.001)]
        {
            let parsed = DurationText::new(text).parse().unwrap().as_secs_f64();
            assert!((parsed - seconds).abs() < 1e-9, "{text} is {parsed} s");
        }
        assert!(DurationText::new("soon").parse().is_err());
    }
}
