//! A real single-node Kubernetes on a bare host, for the demo and for the tests: the tools are built from their released
//! sources, the images are written by our own code, and the node lives in namespaces of its own, so that ending one
//! process removes all of it. With `KUBECONFIG` set, that cluster is used instead.

pub mod cluster;
pub mod demo;
pub mod suite;
pub mod tools;

pub mod bench;
pub mod bucket;
pub mod cache;
pub mod complaints;
pub mod components;
pub mod connect;
pub mod control_plane;
pub mod datastore;
pub mod etcd;
pub mod host;
pub mod images;
pub mod network;
pub mod node;
pub mod oci;
pub mod pki;
pub mod product;
pub mod progress;
pub mod reach;
pub mod run;
pub mod s3;
pub mod wait;
pub mod writer;

pub use cache::Cache;
pub use connect::{Cluster, Namespace};
pub use tools::{Bin, Tools};
pub use wait::{Probe, wait_until};
