//! Members, alarms and what a member says of itself.

use ferretcd_node::Status;
use ferretcd_proto::etcdserverpb::{self as pb, AlarmType};
use ferretcd_types::{Alarm, AlarmKind, Error, Member, MemberId};

use crate::version;

/// A member as clients list it.
pub fn member(member: Member) -> pb::Member {
    let Member { id, name, peer_urls, client_urls, is_learner } = member;
    pb::Member { id: id.0, name, peer_ur_ls: peer_urls, client_ur_ls: client_urls, is_learner }
}

/// Members as clients list them.
pub fn members(all: Vec<Member>) -> Vec<pb::Member> {
    all.into_iter().map(member).collect()
}

/// A raised alarm.
pub fn alarm(alarm: Alarm) -> pb::AlarmMember {
    pb::AlarmMember { member_id: alarm.member.0, alarm: alarm_type(alarm.kind).into() }
}

fn alarm_type(kind: AlarmKind) -> AlarmType {
    match kind {
        AlarmKind::NoSpace => AlarmType::Nospace,
        AlarmKind::Corrupt => AlarmType::Corrupt,
    }
}

/// Which alarm a request is about; `None` is etcd's NONE.
pub fn alarm_kind(wire: i32) -> Result<Option<AlarmKind>, Error> {
    match AlarmType::try_from(wire).map_err(|_| Error::UnknownMethod)? {
        AlarmType::None => Ok(None),
        AlarmType::Nospace => Ok(Some(AlarmKind::NoSpace)),
        AlarmType::Corrupt => Ok(Some(AlarmKind::Corrupt)),
    }
}

/// A member's own view.
pub fn status_response(status: Status, header: pb::ResponseHeader) -> pb::StatusResponse {
    let no_leader = status.leader.is_none().then(|| Error::NoLeader.to_string());
    let alarms = status.alarms.iter().map(|a| {
        // etcd prints the member in decimal here, unlike everywhere else.
        format!("memberID:{} alarm:{}", a.member.0, alarm_type(a.kind).as_str_name())
    });
    pb::StatusResponse {
        header: Some(header),
        version: version::SERVER.into(),
        db_size: clamp(status.db_size),
        leader: status.leader.unwrap_or(MemberId(0)).0,
        raft_index: status.raft_index,
        raft_term: status.raft_term,
        raft_applied_index: status.raft_applied_index,
        errors: no_leader.into_iter().chain(alarms).collect(),
        db_size_in_use: clamp(status.db_size_in_use),
        is_learner: status.is_learner,
        storage_version: status.cluster_version.unwrap_or_default(),
        db_size_quota: clamp(status.db_size_quota),
        downgrade_info: Some(pb::DowngradeInfo {
            enabled: status.downgrade.is_some(),
            target_version: status.downgrade.unwrap_or_default(),
        }),
    }
}

/// Sizes are unsigned here and signed on the wire.
fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_keeps_every_field() {
        let one = Member {
            id: MemberId(7),
            name: "n".into(),
            peer_urls: vec!["p".into()],
            client_urls: vec!["c".into()],
            is_learner: true,
        };
        let wire = pb::Member {
            id: 7,
            name: "n".into(),
            peer_ur_ls: vec!["p".into()],
            client_ur_ls: vec!["c".into()],
            is_learner: true,
        };
        assert_eq!(members(vec![one]), [wire]);
    }

    #[test]
    fn a_status_lists_what_is_wrong() {
        let alarms = vec![Alarm { member: MemberId(255), kind: AlarmKind::NoSpace }];
        let response = status_response(Status { alarms, ..Status::default() }, pb::ResponseHeader::default());
        assert_eq!(response.errors, ["etcdserver: no leader", "memberID:255 alarm:NOSPACE"]);
        assert_eq!(response.leader, 0);
        assert_eq!(response.downgrade_info, Some(pb::DowngradeInfo::default()), "always there");
        let versions =
            Status { cluster_version: Some("3.7.0".into()), downgrade: Some("3.6.0".into()), ..Status::default() };
        let response = status_response(versions, pb::ResponseHeader::default());
        let info = pb::DowngradeInfo { enabled: true, target_version: "3.6.0".into() };
        assert_eq!((response.storage_version.as_str(), response.downgrade_info), ("3.7.0", Some(info)));
        let led = Status { leader: Some(MemberId(9)), db_size: 5, db_size_in_use: 4, ..Status::default() };
        let response = status_response(led, pb::ResponseHeader::default());
        assert!(response.errors.is_empty());
        assert_eq!((response.leader, response.db_size, response.db_size_in_use), (9, 5, 4));
    }

    #[test]
    fn alarms_there_and_back() {
        for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
            let wire = alarm(Alarm { member: MemberId(3), kind });
            assert_eq!(wire.member_id, 3);
            assert_eq!(alarm_kind(wire.alarm), Ok(Some(kind)));
        }
        assert_eq!(alarm_kind(0), Ok(None));
        assert_eq!(alarm_kind(3), Err(Error::UnknownMethod));
    }
}
