//! Why an object could not be applied, and what is said of it.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, policy::v1::PodDisruptionBudget,
};

use super::{Child, ObjectName};
use crate::{keda::scaled_object::ScaledObject, reasons};

/// What is applied after the Deployment.
const AROUND_PODS: [&str; 3] = [PodDisruptionBudget::KIND, HorizontalPodAutoscaler::KIND, ScaledObject::KIND];

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It exists, and somebody else's.
    #[error(
        "{object} exists and does not belong to this McpService: rename the McpService, or delete that {kind} if nothing needs it", kind = object.kind
    )]
    NameTaken {
        /// Which object.
        object: ObjectName,
    },
    /// The API server refuses it as it is.
    #[error("Kubernetes refuses the {object}: {message}")]
    Rejected {
        /// Which object.
        object: ObjectName,
        /// [`super::Child::REJECTED`] of its kind.
        reason: &'static str,
        /// In the API server's words.
        message: String,
    },
    /// Somebody else writes the same fields again and again.
    #[error(
        "{rival} keeps changing {field} of the {object}: make that change in the McpService, or stop {rival} from making it; the operator overwrites it again in {wait:?}"
    )]
    Contested {
        /// Which object.
        object: ObjectName,
        /// The first field that was taken.
        field: Box<str>,
        /// Who wrote it last.
        rival: Box<str>,
        /// How long it is left alone.
        wait: Duration,
    },
    /// It is on its way out, with its former owner or by hand; it can be made anew when it is gone.
    #[error("{object} is being deleted; it is created again when it is gone")]
    Leaving {
        /// Which object.
        object: ObjectName,
    },
    /// The API server did not answer as it should.
    #[error("{verb} {object}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Which object.
        object: ObjectName,
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
            Self::Rejected { reason, .. } => Some(reason),
            Self::Contested { .. } => Some(reasons::FIELDS_CONTESTED),
            Self::Leaving { .. } | Self::Api { .. } => None,
        }
    }

    /// Whether the pods are as the service asks for all the same: somebody fights over a companion of the Deployment, or
    /// one that no pod needs cannot be had.
    pub fn spares_pods(&self) -> bool {
        match self {
            Self::Contested { object, .. } => object.kind != Deployment::KIND,
            Self::NameTaken { object } | Self::Rejected { object, .. } => AROUND_PODS.contains(&object.kind),
            Self::Leaving { .. } | Self::Api { .. } => false,
        }
    }
}
