//! Request ids and progress tokens: a JSON string or integer.

use std::fmt;

use serde::{Serialize, ser::Error as _};
use serde_json::value::RawValue;

/// Longest id that is taken, in bytes of JSON. Ids are kept for as long as a request is in flight, and real ones
/// are numbers and UUIDs.
pub const MAX_ID_BYTES: usize = 1024;

/// A request id as JSON (`1`, `"a"`), so that it goes back as it came. A string with escapes is kept in one
/// canonical spelling: servers answer `"\u0061"` with `"a"` and some answer `"é"` with `"\u00e9"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Box<str>);

/// A progress token: the same JSON types as an id.
pub type ProgressToken = RequestId;

/// Why a JSON value is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// `null` where an id has to be.
    #[error("is null")]
    Null,
    /// Neither a string nor an integer.
    #[error("is neither a string nor an integer")]
    Type,
    /// Over [`MAX_ID_BYTES`].
    #[error("is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
}

impl RequestId {
    /// A number.
    pub fn number(number: u64) -> Self {
        Self(number.to_string().into())
    }

    /// A string.
    pub fn string(text: &str) -> Self {
        Self(serde_json::to_string(text).expect("a string is JSON").into())
    }

    /// Reads the JSON text of an id.
    ///
    /// # Errors
    /// [`IdError`] when it is no string or integer.
    pub fn from_json(raw: &str) -> Result<Self, IdError> {
        if raw.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong);
        }
        match raw.as_bytes().first() {
            Some(b'"') if raw.contains('\\') => {
                let text: String = serde_json::from_str(raw).map_err(|_| IdError::Type)?;
                Ok(Self::string(&text))
            }
            Some(b'"') => Ok(Self(raw.into())),
            Some(b'-' | b'0'..=b'9') if !raw.contains(['.', 'e', 'E']) => Ok(Self(raw.into())),
            Some(b'n') => Err(IdError::Null),
            _ => Err(IdError::Type),
        }
    }

    /// Its JSON text: quotes and all.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Its number, when it is one that fits.
    pub fn as_u64(&self) -> Option<u64> {
        self.0.parse().ok()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RequestId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}
