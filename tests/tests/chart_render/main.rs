//! What the chart renders to, with the values files under its `ci/`. Only helm is asked, no cluster.

mod monitoring;
mod parts;
mod values;
