//! What does not go through, and keeps nothing else waiting.

use super::ApplyError;

/// What was objected to in one apply: the Deployment before all, or else what came first.
#[derive(Debug, Default)]
pub(super) struct Objections(Option<ApplyError>);

impl Objections {
    /// Takes note of what keeps nothing else from being applied: an object that somebody fights over is there, and the
    /// others need no more; what is around the pods none of them needs. Any other failure is passed on.
    pub(super) fn pass(&mut self, applied: Result<(), ApplyError>) -> Result<(), ApplyError> {
        match applied {
            Err(error) if error.spares_pods() || matches!(error, ApplyError::Contested { .. }) => {
                if self.0.is_none() || !error.spares_pods() {
                    self.0 = Some(error);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Once all is applied that could be.
    pub(super) fn end(self) -> Result<(), ApplyError> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{controller::apply::ObjectName, reasons};

    fn object(kind: &'static str) -> ObjectName {
        ObjectName { kind, namespace: "meteo".to_owned(), name: "weather".to_owned() }
    }

    fn contested(kind: &'static str) -> ApplyError {
        let wait = Duration::from_secs(30);
        ApplyError::Contested { object: object(kind), field: "spec".into(), rival: "guard".into(), wait }
    }

    fn rejected(kind: &'static str) -> ApplyError {
        let (reason, message) = (reasons::DEPLOYMENT_REJECTED, "no".to_owned());
        ApplyError::Rejected { object: object(kind), reason, message }
    }

    #[test]
    fn what_is_objected_to_is_told_in_the_end_the_deployment_first() {
        let told = |errors: Vec<ApplyError>| {
            let mut objections = Objections::default();
            for error in errors {
                objections.pass(Err(error)).unwrap();
                objections.pass(Ok(())).unwrap();
            }
            objections.end().map_err(|error| (error.to_string(), error.spares_pods()))
        };
        let starts = |told: Result<(), (String, bool)>, start: &str, spares_pods| {
            let (said, spares) = told.unwrap_err();
            assert!(said.starts_with(start) && spares == spares_pods, "{said}, {spares}");
        };
        assert_eq!(told(Vec::new()), Ok(()));
        let policy = "guard keeps changing spec of the NetworkPolicy meteo/weather";
        starts(told(vec![contested("NetworkPolicy"), contested("PodDisruptionBudget")]), policy, true);
        let budget = "Kubernetes refuses the PodDisruptionBudget meteo/weather";
        let autoscaler = ApplyError::NameTaken { object: object("HorizontalPodAutoscaler") };
        starts(told(vec![rejected("PodDisruptionBudget"), autoscaler]), budget, true);
        let deployment = "guard keeps changing spec of the Deployment meteo/weather";
        let all = vec![contested("NetworkPolicy"), contested("Deployment"), rejected("PodDisruptionBudget")];
        starts(told(all), deployment, false);
    }

    #[test]
    fn what_the_pods_need_and_cannot_have_ends_an_apply() {
        for kind in ["Secret", "NetworkPolicy", "ServiceAccount", "Deployment"] {
            let mut objections = Objections::default();
            objections.pass(Err(contested("NetworkPolicy"))).unwrap();
            let error = objections.pass(Err(rejected(kind))).unwrap_err();
            assert!(!error.spares_pods() && error.to_string().contains(kind), "{error}");
        }
    }
}
