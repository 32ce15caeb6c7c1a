//! `--endpoints-auto-sync-interval`: the endpoints follow the cluster's list of members.

use crate::caller::Caller;
use crate::client;
use crate::endpoint::Endpoint;
use crate::shared::Shared;
use ferretcd_proto::etcdserverpb::MemberListRequest;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use std::time::Duration;

/// How long the list may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks so often, for ever. A list that cannot be had, or that names nobody who can be reached, changes nothing.
pub async fn keep(shared: Shared, every: Duration, has_tls: bool) {
    loop {
        tokio::time::sleep(every).await;
        let request = Caller::default().request(MemberListRequest { linearizable: false });
        let mut client = client!(shared, ClusterClient);
        let list = client.member_list(request);
        let members = match tokio::time::timeout(TIMEOUT, list).await {
            Ok(Ok(answer)) => answer.into_inner().members,
            Ok(Err(status)) => {
                tracing::info!("Auto sync endpoints failed.: {status}");
                continue;
            }
            Err(_) => continue,
        };
        // Learners answer few calls, so etcd's client leaves them out.
        let urls = members.iter().filter(|m| !m.is_learner).flat_map(|m| &m.client_ur_ls);
        let endpoints: Vec<Endpoint> = urls.filter_map(|url| Endpoint::parse(url, has_tls).ok()).collect();
        if !endpoints.is_empty() {
            shared.upstream.replace(endpoints);
        }
    }
}
