//! Resources as anybody may have stored them, past the rules of the CRD: validated or rejected, never a panic.

// The helpers of a test fail it by panicking; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ferretcd_operator_api::EtcdCluster;
use ferretcd_operator_plan::validate::{Settings, validate};

#[test]
fn fuzz_spec() {
    let settings = Settings {
        server_repository: "r".to_owned(),
        server_version: "v".to_owned(),
        operator_image: "i".to_owned(),
        operator_pull_policy: None,
    };
    let head = r#"{"apiVersion":"ferretcd.io/v1alpha1","kind":"EtcdCluster","metadata":{"name":"a","namespace":"b","uid":"c"},"spec":"#;
    let seeds = [
        r#"{"size":3}"#,
        r#"{"size":5,"version":"1.2","storage":{"size":"1Gi","storageClassName":"x"},"deletionPolicy":"Delete"}"#,
        r#"{"size":1,"options":{"quotaBackendBytes":"2Gi","snapshotCount":1},"resources":{"limits":{"cpu":"1"}}}"#,
        r#"{"size":1,"restoreFrom":{"backup":"b","s3":{"bucket":"x","key":"k","endpoint":"http://e"}}}"#,
    ];
    let words = [
        "\"size\":",
        "-1",
        "1e9",
        "\"Gi\"",
        "null",
        "[",
        "]",
        "{",
        "}",
        "\"storage\":",
        "\"options\":",
        "\"version\":",
    ];
    ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "spec").seeds(seeds).words(&words).run(|bytes| {
        let json = [head.as_bytes(), bytes, b"}"].concat();
        match serde_json::from_slice::<EtcdCluster>(&json) {
            Ok(cluster) => format!("{:?}", validate(&cluster, &settings).map(|_| ())),
            Err(e) => e.to_string(),
        }
    });
}
