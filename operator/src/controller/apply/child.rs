//! The kinds of object that a service owns.

use std::fmt::{self, Debug};

use k8s_openapi::{
    NamespaceResourceScope, Resource as Known,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Secret, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};

use crate::{keda::scaled_object::ScaledObject, reasons};

/// A kind of object that a service owns.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Serialize
    + DeserializeOwned
    + Clone
    + Debug
    + 'static
{
    /// As Kubernetes spells it.
    const KIND: &'static str;
    /// Reason of `Accepted=False` where the API server refuses an object of this kind.
    const REJECTED: &'static str;
}

impl Child for Deployment {
    const KIND: &'static str = <Self as Known>::KIND;
    const REJECTED: &'static str = reasons::DEPLOYMENT_REJECTED;
}

impl Child for ServiceAccount {
    const KIND: &'static str = <Self as Known>::KIND;
    const REJECTED: &'static str = reasons::SERVICE_ACCOUNT_REJECTED;
}

impl Child for PodDisruptionBudget {
    const KIND: &'static str = <Self as Known>::KIND;
    const REJECTED: &'static str = reasons::DISRUPTION_BUDGET_REJECTED;
}

impl Child for HorizontalPodAutoscaler {
    const KIND: &'static str = <Self as Known>::KIND;
    const REJECTED: &'static str = reasons::AUTOSCALER_REJECTED;
}

impl Child for ScaledObject {
    const KIND: &'static str = "ScaledObject";
    const REJECTED: &'static str = reasons::SCALED_OBJECT_REJECTED;
}

impl Child for NetworkPolicy {
    const KIND: &'static str = <Self as Known>::KIND;
    const REJECTED: &'static str = reasons::NETWORK_POLICY_REJECTED;
}

impl Child for Secret {
    const KIND: &'static str = <Self as Known>::KIND;
    const REJECTED: &'static str = reasons::SECRET_REJECTED;
}

/// Which object it is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind<K: Child>() -> (&'static str, String, &'static str) {
        (K::KIND, K::kind(&()).into_owned(), K::REJECTED)
    }

    #[test]
    fn each_kind_is_spelled_as_in_kubernetes_and_has_a_reason_of_its_own() {
        for (here, there, rejected) in [
            kind::<Deployment>(),
            kind::<ServiceAccount>(),
            kind::<PodDisruptionBudget>(),
            kind::<HorizontalPodAutoscaler>(),
            kind::<ScaledObject>(),
            kind::<NetworkPolicy>(),
            kind::<Secret>(),
        ] {
            assert_eq!(here, there);
            assert_eq!(rejected, format!("{here}Rejected"));
        }
    }
}
