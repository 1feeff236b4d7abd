//! What is read from a message's body only when somebody asks.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Kind, Message, ProgressToken, RequestId};

/// What matters of an `initialize` result.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitializeResult {
    /// The revision that the server chose.
    pub protocol_version: String,
    /// Who it is.
    pub server_info: ServerInfo,
    /// What it can do, as it said it.
    pub capabilities: Box<RawValue>,
    /// How to use it.
    #[serde(default)]
    pub instructions: Option<String>,
}

/// Name and version of an implementation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Name.
    pub name: String,
    /// Version.
    #[serde(default)]
    pub version: String,
}

/// `params` of `notifications/progress`.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// So much is done.
    pub progress: f64,
    /// Of so much, when known.
    pub total: Option<f64>,
    /// In words.
    pub message: Option<String>,
}

impl Message {
    /// The progress token: `params._meta.progressToken` of a request, `params.progressToken` of
    /// `notifications/progress`.
    pub fn progress_token(&self) -> Option<ProgressToken> {
        #[derive(Deserialize)]
        struct Of<'a> {
            #[serde(borrow, rename = "progressToken")]
            token: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Meta<'a> {
            #[serde(borrow, rename = "_meta")]
            meta: Option<Of<'a>>,
        }
        let params = self.params()?;
        // Most requests have none: one scan is cheaper than a parse.
        memchr::memmem::find(params.as_bytes(), b"progressToken")?;
        let raw = match &self.kind {
            Kind::Request { .. } => serde_json::from_str::<Meta<'_>>(params).ok()?.meta?.token?,
            Kind::Notification { method } if &**method == "notifications/progress" => {
                serde_json::from_str::<Of<'_>>(params).ok()?.token?
            }
            _ => return None,
        };
        RequestId::from_json(raw.get()).ok()
    }

    /// `params` of `notifications/progress`.
    pub fn progress(&self) -> Option<Progress> {
        #[derive(Deserialize)]
        struct Params {
            progress: f64,
            total: Option<f64>,
            message: Option<String>,
        }
        if self.method() != Some("notifications/progress") {
            return None;
        }
        let Params { progress, total, message } = self.params_as().ok()??;
        Some(Progress { progress, total, message })
    }

    /// `params.requestId` of `notifications/cancelled`.
    pub fn cancelled_request(&self) -> Option<RequestId> {
        #[derive(Deserialize)]
        struct Params<'a> {
            #[serde(borrow, rename = "requestId")]
            id: &'a RawValue,
        }
        if self.method() != Some("notifications/cancelled") {
            return None;
        }
        let params: Params<'_> = self.params_as().ok()??;
        RequestId::from_json(params.id.get()).ok()
    }

    /// `protocolVersion` of an `initialize` request's params or of its result.
    pub fn protocol_version(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(rename = "protocolVersion")]
            version: String,
        }
        let body = match &self.kind {
            Kind::Request { method, .. } if &**method == "initialize" => self.params()?,
            Kind::Response { is_error: false, .. } => self.result()?,
            _ => return None,
        };
        Some(serde_json::from_str::<Versioned>(body).ok()?.version)
    }

    /// The result of an `initialize` request.
    ///
    /// # Errors
    /// When this is no result, or a field of it is missing or wrong.
    pub fn initialize_result(&self) -> Result<InitializeResult, serde_json::Error> {
        serde_json::from_str(self.result().unwrap_or("null"))
    }
}
