//! Why an object could not be applied, and what is said of it.

use std::time::Duration;

use crate::reasons;

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It exists, and somebody else's.
    #[error(
        "{kind} {namespace}/{name} exists and does not belong to this McpService: rename the McpService, or delete that {kind} if nothing needs it"
    )]
    NameTaken {
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The API server refuses it as it is.
    #[error("Kubernetes refuses the {kind} {namespace}/{name}: {message}")]
    Rejected {
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// In the API server's words.
        message: String,
    },
    /// Somebody else writes the same fields again and again.
    #[error(
        "{rival} keeps changing the {kind} {namespace}/{name} where this McpService has its say ({field}): make the change in the McpService, or have {rival} leave it alone; it is mended again in {wait:?}"
    )]
    Contested {
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The first field that was taken.
        field: Box<str>,
        /// Who wrote it last.
        rival: Box<str>,
        /// How long it is left alone.
        wait: Duration,
    },
    /// It is on its way out, with its former owner or by hand; it can be made anew when it is gone.
    #[error("{kind} {namespace}/{name} is being deleted; it is made anew when it is gone")]
    Leaving {
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The API server did not answer as it should.
    #[error("{verb} {kind} {namespace}/{name}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
}

impl ApplyError {
    /// Reason of `Accepted=False`; none: it passes by itself, and the condition stays as it is.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::NameTaken { .. } => Some(reasons::NAME_TAKEN),
            Self::Rejected { kind, .. } => Some(match *kind {
                "Deployment" => reasons::DEPLOYMENT_REJECTED,
                "ServiceAccount" => reasons::SERVICE_ACCOUNT_REJECTED,
                "PodDisruptionBudget" => reasons::DISRUPTION_BUDGET_REJECTED,
                "HorizontalPodAutoscaler" => reasons::AUTOSCALER_REJECTED,
                "ScaledObject" => reasons::SCALED_OBJECT_REJECTED,
                "NetworkPolicy" => reasons::NETWORK_POLICY_REJECTED,
                _ => reasons::SECRET_REJECTED,
            }),
            Self::Contested { .. } => Some(reasons::FIELDS_CONTESTED),
            Self::Leaving { .. } | Self::Api { .. } => None,
        }
    }
}
