//! Whether a member with an empty data directory may take its place: only when it has never run before.
//!
//! A voter that lost its disk has forgotten its votes and the entries that it acknowledged; one that comes back empty
//! under the same ID can help to elect a leader without entries that clients were told are safe. Its name in the
//! cluster is no proof, since it votes before its name is published, and a member that lags does not know it yet. So
//! each process that comes with an empty directory makes a number, its *arrival*, keeps it in that directory, and
//! tells it to the others, who write the first one that they hear of each member down before they answer. A quorum
//! knows it before the member may vote; so many must know no other one that they meet each such quorum.

use ferretcd_proto::peer::{ProbeArrival, ProbeResponse};
use ferretcd_types::{ClusterId, Epoch, MemberId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a small file so that it is there whole or not at all, also after a power cut.
pub(crate) fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// What stands before the checksum (CRC-32C) of the lines above it, the last line of a small file: with one hexadecimal
/// digit for another that would name a different member, and nobody would see it.
const CHECKSUM: &str = "checksum = ";

/// The lines with their checksum behind them.
pub(crate) fn sealed(lines: &str) -> String {
    format!("{lines}{CHECKSUM}{:08x}\n", crc32c::crc32c(lines.as_bytes()))
}

/// The lines of a sealed file; none if the checksum is another. A text without one is from before there was any, and what
/// it says is all that tells damage.
pub(crate) fn unsealed(text: &str) -> Option<&str> {
    match text.split_once(CHECKSUM) {
        Some((lines, _)) => (sealed(lines) == text).then_some(lines),
        None => Some(text),
    }
}

/// What a small file says, if it is there. What is no text is damaged, and will be told so.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io::Error::new(e.kind(), format!("cannot read {}: {e}", path.display()))),
    }
}

fn damaged(path: &Path) -> io::Error {
    let why = format!("{} is damaged; restore the file, or replace this member", path.display());
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// This process's arrival number: that of the data directory, or a new one. Its errors name the file.
pub(crate) fn own_arrival(dir: &Path) -> io::Result<u64> {
    let path = dir.join("arrival");
    let lines = |number: u64| format!("{number:x}\n");
    let Some(text) = read(&path)? else {
        let number = rand::random::<u64>().max(1);
        write_durably(&path, &sealed(&lines(number)))
            .map_err(|e| io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display())))?;
        return Ok(number);
    };
    let found = unsealed(&text).unwrap_or_default();
    let number = u64::from_str_radix(found.trim_end(), 16).ok();
    number.filter(|number| lines(*number) == found).ok_or_else(|| damaged(&path))
}

/// The first arrival that this member heard of each other one: a line `member = number` each and their checksum, in the
/// data directory. Only members of the cluster are written down, so it is never longer than the list of all that ever were.
#[derive(Debug)]
pub(crate) struct Arrivals {
    path: PathBuf,
    known: BTreeMap<MemberId, u64>,
}

impl Arrivals {
    /// What an earlier process wrote down. Its errors name the file.
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let path = dir.join("arrivals");
        let Some(text) = read(&path)? else { return Ok(Arrivals { path, known: BTreeMap::new() }) };
        let line = |line: &str| {
            let (id, number) = line.split_once(" = ")?;
            Some((MemberId(u64::from_str_radix(id, 16).ok()?), u64::from_str_radix(number, 16).ok()?))
        };
        let found = unsealed(&text).unwrap_or_default();
        let known: Option<BTreeMap<_, _>> = found.lines().map(line).collect();
        // The file is made with its first line.
        match known.filter(|known| !known.is_empty() && lines_of(known) == found) {
            Some(known) => Ok(Arrivals { path, known }),
            None => Err(damaged(&path)),
        }
    }

    /// Whether `number` is the first arrival of the member, or the one that was written down. It is on stable storage
    /// when this answers.
    pub(crate) fn heard(&mut self, member: MemberId, number: u64) -> io::Result<bool> {
        if let Some(first) = self.known.get(&member) {
            return Ok(*first == number);
        }
        let mut known = self.known.clone();
        known.insert(member, number);
        write_durably(&self.path, &sealed(&lines_of(&known)))?;
        self.known = known;
        Ok(true)
    }
}

fn lines_of(known: &BTreeMap<MemberId, u64>) -> String {
    known.iter().map(|(id, number)| format!("{id} = {number:x}\n")).collect()
}

/// What the others' answers mean for a member with an empty data directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A quorum of the named members is there, and none of them has a cluster.
    Found,
    /// The cluster lists it, and it has never run.
    Join(Epoch),
    /// It has run before: another arrival, or a name, is known at this URL.
    Ran(String),
    /// The member at this URL has a cluster without it.
    Unlisted(String),
    /// Too few have answered: this is what is missing.
    Wait(String),
}

/// Who asks.
pub(crate) struct Asker {
    pub(crate) member: MemberId,
    pub(crate) cluster: ClusterId,
    /// It is named as a founder: then only founders can vouch for it, and it may found.
    pub(crate) founder: bool,
    /// Members that the flags name.
    pub(crate) named: usize,
    /// Its log is whole, though nothing is in it yet: nobody has to vouch for it.
    pub(crate) intact: bool,
}

/// One answer by URL.
pub(crate) type Answers = [(String, Result<ProbeResponse, String>)];

/// Decides on one round of answers, each of which has written this member's arrival down.
pub(crate) fn judge(asker: &Asker, answers: &Answers) -> Verdict {
    // A member with several URLs answers several times and counts once.
    let mut seen = BTreeSet::new();
    let heard: Vec<(&String, &ProbeResponse)> = answers
        .iter()
        .filter_map(|(url, answer)| answer.as_ref().ok().map(|a| (url, a)))
        // Another member's URL may lead back here (a name that is not set up yet, a load balancer): that is no other.
        .filter(|(_, a)| a.member_id != asker.member.0)
        .filter(|(_, a)| a.member_id == 0 || seen.insert(a.member_id))
        .collect();
    if let Some((url, _)) = heard.iter().find(|(_, a)| a.arrival() == ProbeArrival::Other) {
        return Verdict::Ran((*url).clone());
    }
    let formed: Vec<_> = heard.iter().filter(|(_, a)| a.formed).collect();
    let mut vouchers = Vec::new();
    let mut size = asker.named;
    for (url, answer) in &formed {
        let listed = answer.members.iter().find(|m| m.id == asker.member.0);
        match listed {
            Some(m) if answer.cluster_id == asker.cluster.0 => {
                if !m.name.is_empty() {
                    return Verdict::Ran((*url).clone());
                }
                if asker.intact || answer.arrival() == ProbeArrival::First {
                    vouchers.push(answer.epoch);
                    size = if asker.founder { asker.named } else { size.max(answer.members.len()) };
                }
            }
            // One that lags has not heard of who was just added. All have of the founders.
            None if !asker.founder
                && answer.cluster_id == asker.cluster.0
                && !answer.removed.contains(&asker.member.0) => {}
            _ => return Verdict::Unlisted((*url).clone()),
        }
    }
    let quorum = size / 2 + 1;
    if formed.is_empty() && asker.founder {
        // Who names other members, or another token, would found another cluster.
        let agrees = |a: &ProbeResponse| a.arrival() == ProbeArrival::First && a.cluster_id == asker.cluster.0;
        let there = 1 + heard.iter().filter(|(_, a)| agrees(a)).count();
        if there >= quorum {
            return Verdict::Found;
        }
        return Verdict::Wait(format!(
            "{there} of the {size} named members are there and agree, {quorum} can found the cluster"
        ));
    }
    // quorum - 1 of the size - 1 others may know an earlier arrival; so many meet them.
    let needed = if asker.intact { 1 } else { size - quorum + 1 };
    match vouchers.first() {
        Some(epoch) if vouchers.len() >= needed => Verdict::Join(Epoch(*epoch)),
        _ => Verdict::Wait(format!(
            "the cluster exists; {} of {needed} members confirm that this one has never run",
            vouchers.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_proto::peer::ProbeMember;

    const ME: MemberId = MemberId(7);

    fn founder(named: usize) -> Asker {
        Asker { member: ME, cluster: ClusterId(1), founder: true, named, intact: false }
    }

    fn empty(id: u64, arrival: ProbeArrival) -> (String, Result<ProbeResponse, String>) {
        let answer =
            ProbeResponse { arrival: arrival.into(), member_id: id, cluster_id: 1, ..ProbeResponse::default() };
        (format!("u{id}"), Ok(answer))
    }

    fn formed(id: u64, arrival: ProbeArrival, name: &str) -> (String, Result<ProbeResponse, String>) {
        let me = ProbeMember { id: ME.0, name: name.to_owned(), ..ProbeMember::default() };
        let others = (1..3).map(|id| ProbeMember { id, ..ProbeMember::default() });
        let members = others.chain([me]).collect();
        let answer = ProbeResponse {
            cluster_id: 1,
            member_id: id,
            epoch: 5,
            formed: true,
            members,
            arrival: arrival.into(),
            ..ProbeResponse::default()
        };
        (format!("u{id}"), Ok(answer))
    }

    fn away(id: u64) -> (String, Result<ProbeResponse, String>) {
        (format!("u{id}"), Err("refused".to_owned()))
    }

    use ProbeArrival::{First, Other, Unsaid};

    #[test]
    fn a_quorum_of_empty_members_founds_and_fewer_wait() {
        assert_eq!(judge(&founder(1), &[]), Verdict::Found);
        assert_eq!(judge(&founder(3), &[empty(1, First), away(2)]), Verdict::Found);
        assert!(matches!(judge(&founder(3), &[away(1), away(2)]), Verdict::Wait(_)));
        assert!(matches!(judge(&founder(5), &[empty(1, First), empty(1, First), away(2)]), Verdict::Wait(_)));
        let join = Asker { founder: false, ..founder(3) };
        assert!(matches!(judge(&join, &[empty(1, First), empty(2, First)]), Verdict::Wait(_)));
    }

    #[test]
    fn members_that_would_found_another_cluster_do_not_count() {
        let mut other = empty(1, First);
        other.1.as_mut().unwrap().cluster_id = 2;
        assert!(matches!(judge(&founder(3), &[other.clone(), away(2)]), Verdict::Wait(_)));
        assert_eq!(judge(&founder(3), &[other, empty(2, First)]), Verdict::Found);
    }

    #[test]
    fn one_that_ran_before_is_told_so_by_any_that_remembers() {
        for answers in [
            [empty(1, Other), away(2)],
            [empty(1, First), empty(2, Other)],
            [formed(1, First, ""), formed(2, Other, "")],
            [formed(1, First, ""), empty(2, Other)],
            [formed(1, First, "me"), away(2)],
        ] {
            assert!(matches!(judge(&founder(3), &answers), Verdict::Ran(_)), "{answers:?}");
        }
    }

    #[test]
    fn a_late_founder_needs_as_many_as_meet_every_quorum_that_it_may_have_run_with() {
        assert!(matches!(judge(&founder(3), &[formed(1, First, ""), away(2)]), Verdict::Wait(_)));
        // An empty one may have lost its own memory, and one that joined later never had it.
        assert!(matches!(judge(&founder(3), &[formed(1, First, ""), empty(2, First)]), Verdict::Wait(_)));
        assert!(matches!(judge(&founder(3), &[formed(1, First, ""), formed(2, Unsaid, "")]), Verdict::Wait(_)));
        assert_eq!(judge(&founder(3), &[formed(1, First, ""), formed(2, First, "")]), Verdict::Join(Epoch(5)));
        let intact = Asker { intact: true, ..founder(3) };
        assert_eq!(judge(&intact, &[formed(1, First, ""), away(2)]), Verdict::Join(Epoch(5)));
        let three = [formed(1, First, ""), formed(2, First, ""), formed(3, First, ""), away(4)];
        assert_eq!(judge(&founder(5), &three), Verdict::Join(Epoch(5)));
        assert!(matches!(judge(&founder(5), &three[..2]), Verdict::Wait(_)));
    }

    #[test]
    fn who_was_just_added_waits_for_members_that_have_not_heard_of_it() {
        let joiner = Asker { founder: false, ..founder(4) };
        let lagging = |id| {
            let (url, mut answer) = formed(id, Unsaid, "");
            answer.as_mut().unwrap().members.retain(|m| m.id != ME.0);
            (url, answer)
        };
        let two = [formed(1, First, ""), formed(2, First, ""), lagging(3)];
        assert_eq!(judge(&joiner, &two), Verdict::Join(Epoch(5)));
        assert!(matches!(judge(&joiner, &[formed(1, First, ""), lagging(2), lagging(3)]), Verdict::Wait(_)));
        // It was removed, or never belonged there: no wait helps.
        let (url, mut removed) = lagging(3);
        removed.as_mut().unwrap().removed.push(ME.0);
        let unlisted = Verdict::Unlisted(url.clone());
        assert_eq!(judge(&joiner, &[formed(1, First, ""), formed(2, First, ""), (url, removed)]), unlisted);
        let elsewhere = Asker { cluster: ClusterId(2), ..joiner };
        assert!(matches!(judge(&elsewhere, &[lagging(3)]), Verdict::Unlisted(_)));
        // A founder is in everybody's first entry.
        assert!(matches!(judge(&founder(4), &[lagging(3)]), Verdict::Unlisted(_)));
    }

    #[test]
    fn a_url_that_leads_back_is_no_other_member() {
        assert!(matches!(judge(&founder(2), &[empty(ME.0, First)]), Verdict::Wait(_)));
        assert_eq!(judge(&founder(3), &[empty(ME.0, First), empty(2, First)]), Verdict::Found);
    }

    #[test]
    fn a_member_of_another_cluster_does_not_list_this_one() {
        let asker = Asker { cluster: ClusterId(2), ..founder(3) };
        assert_eq!(judge(&asker, &[formed(1, First, ""), away(2)]), Verdict::Unlisted("u1".to_owned()));
    }

    /// What others answer to a member that finds out whether it may take its place: anybody who listens there.
    #[test]
    fn fuzz_probe_answer() {
        use crate::difference::difference;
        use prost::Message as _;
        let answers = [formed(1, First, ""), formed(2, Other, "me"), empty(3, First), formed(1, Unsaid, "x")];
        let seed = |answers: &[(String, Result<ProbeResponse, String>)]| {
            let each = answers.iter().map(|(_, answer)| answer.as_ref().unwrap().encode_length_delimited_to_vec());
            each.collect::<Vec<_>>().concat()
        };
        let seeds =
            [seed(&answers), seed(&answers[..1]), seed(&answers[2..]), seed(&[answers[0].clone(), empty(2, First)])];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "probe_answer").seeds(seeds);
        fuzz.run(|mut bytes| {
            let mut answers = Vec::new();
            while !bytes.is_empty() {
                let answer = ProbeResponse::decode_length_delimited(&mut bytes).map_err(|e| e.to_string());
                let failed = answer.is_err();
                answers.push((format!("u{}", answers.len()), answer));
                if failed {
                    break;
                }
            }
            let here = BTreeMap::from([("me".to_owned(), vec!["http://a:1".to_owned()])]);
            let differs: Vec<_> =
                answers.iter().flat_map(|(_, a)| a.as_ref().ok()).map(|a| difference(&here, &a.members)).collect();
            let askers = [founder(3), Asker { founder: false, ..founder(3) }, Asker { intact: true, ..founder(1) }];
            format!("{:?} {differs:?}", askers.map(|asker| judge(&asker, &answers)))
        });
    }

    /// An `arrival` and an `arrivals`: of the first release, and with the checksum that it did not have.
    const GOLDEN: (&str, &str) = ("8f2b51aa00c0ffee\n", "7 = 1\n8152a7efcb8517d = ffffffffffffffff\n");
    const GOLDEN_SEALED: (&str, &str) =
        ("8f2b51aa00c0ffee\nchecksum = 372e4328\n", "7 = 1\n8152a7efcb8517d = ffffffffffffffff\nchecksum = 766af82b\n");

    #[test]
    fn the_first_releases_arrivals_are_read_and_written_with_a_checksum() {
        let others = [(MemberId(7), 1), (MemberId(0x0815_2a7e_fcb8_517d), u64::MAX)];
        for (own, heard) in [GOLDEN, GOLDEN_SEALED] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("arrival"), own).unwrap();
            fs::write(dir.path().join("arrivals"), heard).unwrap();
            assert_eq!(own_arrival(dir.path()).unwrap(), 0x8f2b_51aa_00c0_ffee);
            let mut read = Arrivals::load(dir.path()).unwrap();
            assert_eq!(read.known, BTreeMap::from(others));
            assert!(!read.heard(MemberId(7), 2).unwrap());
        }
        let dir = tempfile::tempdir().unwrap();
        let mut arrivals = Arrivals::load(dir.path()).unwrap();
        for (member, number) in others {
            assert!(arrivals.heard(member, number).unwrap());
        }
        assert_eq!(fs::read_to_string(dir.path().join("arrivals")).unwrap(), GOLDEN_SEALED.1);
        let own = own_arrival(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("arrival")).unwrap(), sealed(&format!("{own:x}\n")));
        assert_eq!(sealed(GOLDEN.0), GOLDEN_SEALED.0);
    }

    /// With one digit for another they would be of another member: a disk that was emptied could vote again.
    #[test]
    fn any_flipped_bit_of_an_arrival_is_seen_and_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("arrival", GOLDEN_SEALED.0), ("arrivals", GOLDEN_SEALED.1)] {
            let file = dir.path().join(name);
            let bits = (0..text.len()).flat_map(|at| (0..8).map(move |bit| (at, bit)));
            for (at, bit) in bits {
                let mut damaged = text.as_bytes().to_vec();
                damaged[at] ^= 1 << bit;
                fs::write(&file, damaged).unwrap();
                let read = match name {
                    "arrival" => own_arrival(dir.path()).map(drop),
                    _ => Arrivals::load(dir.path()).map(drop),
                };
                let told = read.map_err(|e| e.to_string()).err().unwrap_or_default();
                let is_named = told.starts_with(file.to_str().unwrap());
                assert!(is_named && told.contains("replace this member"), "bit {bit} of byte {at} of {name}: {told}");
            }
        }
    }

    #[test]
    fn the_first_arrival_is_remembered_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut arrivals = Arrivals::load(dir.path()).unwrap();
        assert!(arrivals.heard(ME, 1).unwrap());
        assert!(arrivals.heard(ME, 1).unwrap());
        assert!(!arrivals.heard(ME, 2).unwrap());
        let mut arrivals = Arrivals::load(dir.path()).unwrap();
        assert!(!arrivals.heard(ME, 2).unwrap());
        assert!(arrivals.heard(ME, 1).unwrap());
        assert!(arrivals.heard(MemberId(8), 2).unwrap());
        for text in ["", "7 = x\n"] {
            fs::write(dir.path().join("arrivals"), text).unwrap();
            assert!(Arrivals::load(dir.path()).is_err(), "{text:?}");
        }
        let own = own_arrival(dir.path()).unwrap();
        assert_eq!(own_arrival(dir.path()).unwrap(), own);
    }
}
