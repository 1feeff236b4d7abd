//! What the stores keep of an object: what is read of it, and no more. A thousand services have a thousand of each.

use kube::ResourceExt;

use super::{build::GATEWAY, scope::Guarded};
use crate::{
    live::pod::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus},
    names::{PAUSED, POD_DELETION_COST, POD_TEMPLATE_HASH, SERVICE_ANNOTATION},
};

/// A service without what others noted on it: kubectl's copy of the manifest is as large as the manifest.
pub(super) fn service(service: &mut Guarded) {
    service.managed_fields_mut().clear();
    service.annotations_mut().retain(|key, _| key == PAUSED);
    service.labels_mut().clear();
}

/// A pod's state and who it belongs to.
pub(super) fn pod(pod: &mut Pod) {
    let metadata = &mut pod.metadata;
    metadata.managed_fields = None;
    metadata.owner_references = None;
    if let Some(labels) = &mut metadata.labels {
        labels.retain(|key, _| key == POD_TEMPLATE_HASH);
    }
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| key == SERVICE_ANNOTATION || key == POD_DELETION_COST);
    }
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        host_ip: status.host_ip,
        conditions: status.conditions.map(conditions),
        init_container_statuses: status.init_container_statuses.map(containers),
        container_statuses: status.container_statuses.map(containers),
    });
}

fn conditions(all: Vec<PodCondition>) -> Vec<PodCondition> {
    let told = all.into_iter().filter(|condition| match condition.type_.as_str() {
        "Ready" => true,
        "PodScheduled" => condition.status == "False",
        _ => false,
    });
    told.collect::<Box<[_]>>().into_vec()
}

/// One that runs, or has ended as it should, and did so at once, has nothing to say; but a gateway that runs is asked.
/// The last words of others are not ours to tell.
fn containers(all: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    let is_well = |state: &ContainerState| {
        state.running.is_some() || state.terminated.as_ref().is_some_and(|end| end.exit_code == 0)
    };
    let told = all.into_iter().filter(|container| {
        container.name == GATEWAY
            || container.restart_count > 0
            || !container.state.as_ref().is_some_and(is_well)
    });
    let told = told.map(|mut container| {
        if container.name != GATEWAY {
            let states = [&mut container.state, &mut container.last_state].into_iter().flatten();
            states.filter_map(|state| state.terminated.as_mut()).for_each(|end| end.message = None);
        }
        container
    });
    told.collect::<Box<[_]>>().into_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        controller::problems::{of_pod, tests as problems},
        observe::{is_asked, is_ready},
    };

    fn status(state: &Value, last: &Value, restarts: i32, conditions: &Value) -> Value {
        let container = |name: &str, state: &Value, last: &Value, restarts: i32| {
            json!({
                "name": name, "ready": true, "restartCount": restarts, "image": "i", "imageID": "sha",
                "state": state, "lastState": last,
            })
        };
        let running = json!({"running": {}});
        json!({
            "phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.1.1.1", "conditions": conditions,
            "initContainerStatuses": [
                container("migrate", &json!({"terminated": {"exitCode": 0}}), &json!({}), 0),
                container(GATEWAY, &running, &json!({}), 0),
            ],
            "containerStatuses": [container("server", state, last, restarts)],
        })
    }

    #[test]
    fn a_trimmed_pod_says_the_same_as_the_whole_one() {
        let running = json!({"running": {}});
        let ready = |status: &str| json!([{"type": "Ready", "status": status}, {"type": "Initialized", "status": "True"}]);
        let crash = json!({"terminated": {"exitCode": 3, "reason": "OOMKilled", "message": "m"}});
        let waits =
            |reason: &str| json!({"waiting": {"reason": reason, "message": "ErrImagePull: no such image"}});
        let unscheduled = json!([{"type": "PodScheduled", "status": "False", "message": "no room"}]);
        for (state, last, restarts, conditions) in [
            (&running, &json!({}), 0, &ready("True")),
            (&running, &json!({}), 0, &ready("False")),
            (&running, &crash, 9, &ready("False")),
            (&crash, &json!({}), 0, &ready("False")),
            (&waits("CrashLoopBackOff"), &crash, 4, &ready("False")),
            (&waits("ImagePullBackOff"), &json!({}), 0, &ready("False")),
            (&json!({}), &json!({}), 0, &unscheduled),
        ] {
            let whole = problems::pod("a", &status(state, last, restarts, conditions));
            let mut trimmed = whole.clone();
            pod(&mut trimmed);
            assert_ne!(trimmed, whole);
            assert_eq!(of_pod(&trimmed, None), of_pod(&whole, None), "{state} {last}");
            assert_eq!(is_ready(&trimmed), is_ready(&whole));
            assert!(is_asked(&whole) && is_asked(&trimmed));
            let host = |pod: &Pod| pod.status.as_ref().and_then(|status| status.host_ip.clone());
            assert_eq!(host(&trimmed), host(&whole));
        }
    }

    #[test]
    fn last_words_are_kept_of_the_gateway_alone() {
        let failed = |name: &str| {
            let end = json!({"terminated": {"exitCode": 1, "message": "words"}});
            json!({"name": name, "restartCount": 1, "state": end, "lastState": end})
        };
        let both =
            json!({"initContainerStatuses": [failed(GATEWAY)], "containerStatuses": [failed("server")]});
        let mut ended = problems::pod("a", &both);
        pod(&mut ended);
        let status = ended.status.unwrap();
        let words = |all: Option<Vec<ContainerStatus>>| {
            let container = all.unwrap().remove(0);
            [container.state, container.last_state].map(|state| state.unwrap().terminated.unwrap().message)
        };
        assert_eq!(
            words(status.init_container_statuses),
            [Some("words".to_owned()), Some("words".to_owned())]
        );
        assert_eq!(words(status.container_statuses), [None, None]);
    }

    #[test]
    fn of_a_pod_that_is_well_the_gateway_is_kept() {
        let mut well = problems::pod("a", &status(&json!({"running": {}}), &json!({}), 0, &json!([])));
        pod(&mut well);
        let status = well.status.unwrap();
        let names = |all: Option<Vec<ContainerStatus>>| {
            all.unwrap().into_iter().map(|container| container.name).collect::<Vec<_>>()
        };
        assert_eq!(names(status.init_container_statuses), [GATEWAY]);
        assert!(names(status.container_statuses).is_empty());
    }
}
