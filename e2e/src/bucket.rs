//! A bucket of the cluster's S3 server, through curl as a client of its own: what a backup left in the store is not asked of
//! the code that put it there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::connect::Cluster;
use crate::host;
use crate::reach::Reach;
use crate::run;
use crate::s3;

/// The bucket [`s3::BUCKET`].
#[derive(Debug)]
pub struct Bucket {
    reach: Reach,
}

impl Bucket {
    /// The bucket of a server that is up ([`s3::up`]).
    pub fn open(cluster: &Cluster) -> Result<Self> {
        if host::find_program("curl").is_none() {
            bail!("curl, which lists the object store, is not installed (Debian: apt-get install curl)");
        }
        Ok(Self { reach: cluster.reach_service(s3::NAMESPACE, s3::SERVICE, s3::PORT)? })
    }

    /// The keys that start with `prefix`, at most 1000 (one page), sorted, with the size of each in bytes.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let query = format!("?list-type=2&prefix={}", prefix.replace('/', "%2F"));
        let answer = run::output(self.curl(b"").arg(self.url(&query)))?.stdout;
        contents(&answer).with_context(|| format!("reading the list of bucket {}: {answer}", s3::BUCKET))
    }

    /// Downloads an object to a file.
    pub fn download(&self, key: &str, to: &Path) -> Result<()> {
        run::output(self.curl(b"").arg("--output").arg(to).arg(self.url(&format!("/{key}")))).map(drop)
    }

    /// Uploads a file as an object.
    pub fn upload(&self, from: &Path, key: &str) -> Result<()> {
        let body = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        run::output(self.curl(&body).arg("--upload-file").arg(from).arg(self.url(&format!("/{key}")))).map(drop)
    }

    /// The command that lists the bucket, for people.
    pub fn list_command(&self) -> String {
        format!(
            "curl --aws-sigv4 aws:amz:{}:s3 --user {}:{} -H x-amz-content-sha256:UNSIGNED-PAYLOAD '{}'",
            s3::REGION,
            s3::ACCESS_KEY,
            s3::SECRET_KEY,
            self.url("?list-type=2")
        )
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/{}{rest}", self.reach.url(), s3::BUCKET)
    }

    fn curl(&self, body: &[u8]) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "60"]);
        command.args(["--aws-sigv4", &format!("aws:amz:{}:s3", s3::REGION)]);
        command.args(["--user", &format!("{}:{}", s3::ACCESS_KEY, s3::SECRET_KEY)]);
        // The server insists on this header, and Debian 12's curl does not send it by itself.
        command.args(["--header", &format!("x-amz-content-sha256: {:x}", Sha256::digest(body))]);
        command
    }
}

/// Key and size of each `<Contents>` of S3's answer; keys of ours need no XML escapes.
fn contents(answer: &str) -> Option<Vec<(String, u64)>> {
    if !answer.contains("<ListBucketResult") || answer.contains("<IsTruncated>true") {
        return None;
    }
    let field = |entry: &str, name: &str| {
        let (_, rest) = entry.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.to_owned())
    };
    let entries = answer.split("<Contents>").skip(1);
    let mut found = entries
        .map(|entry| Some((field(entry, "Key")?, field(entry, "Size")?.parse().ok()?)))
        .collect::<Option<Vec<(String, u64)>>>()?;
    found.sort();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_anything_else_refused() {
        let list = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>b</Key><Size>2</Size></Contents>\
                    <Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>";
        assert_eq!(contents(list), Some(vec![("a".into(), 1), ("b".into(), 2)]));
        assert_eq!(contents("<ListBucketResult></ListBucketResult>"), Some(vec![]));
        assert_eq!(contents("<Error><Code>AccessDenied</Code></Error>"), None);
        assert_eq!(contents(&list.replace("false", "true")), None);
    }
}
