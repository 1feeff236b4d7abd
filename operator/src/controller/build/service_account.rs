//! The pods' identity: a `ServiceAccount` of their own without API token, so that the MCP server, which runs what
//! models ask for, has no rights in the cluster.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::controller::validate::ValidService;

/// None where `podTemplate` names a `ServiceAccount`.
pub(super) fn build_service_account(service: &ValidService) -> Option<ServiceAccount> {
    let spec = service.pod_template.as_ref().and_then(|template| template.spec.as_ref());
    if spec.is_some_and(|spec| spec.service_account_name.is_some() || spec.service_account.is_some()) {
        return None;
    }
    Some(ServiceAccount {
        metadata: metadata(service, service.child_name()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}
