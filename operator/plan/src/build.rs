//! One Kubernetes object per file.
