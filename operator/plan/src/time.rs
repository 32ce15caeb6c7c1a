//! Between `chrono`, in which decisions count, and Kubernetes' `Time`, in which objects are written. Seconds are enough: the
//! API server keeps no more.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// A moment as Kubernetes writes it, cut to seconds.
pub fn to_kube(moment: DateTime<Utc>) -> Time {
    Time(Timestamp::from_second(moment.timestamp()).unwrap_or_default())
}

/// A moment that Kubernetes wrote.
pub fn from_kube(time: &Time) -> DateTime<Utc> {
    DateTime::from_timestamp(time.0.as_second(), 0).unwrap_or_default()
}
