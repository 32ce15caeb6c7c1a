//! Every command of etcdctl with the same arguments against three members of real etcd and three of this server: the same
//! words must come out, in each of its formats, IDs, addresses and times apart.

use crate::support::etcd::Etcd;
use crate::support::{Cluster, Member, PATIENCE, etcd_tool, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// One line for each call. In front of it may stand:
/// `*` in every output format; `sorted` where the order of lines is that of IDs; `~` both;
/// `@all` all members are asked, instead of the first alone;
/// `lines=N` it goes on for ever, and is ended after so many lines.
/// `<<` begins what it reads. A new lease is `{lease1}`, `{lease2}` and so on.
const CALLS: &str = r#"
put a 1
put a 2 --prev-kv
put a 3 --prev-kv -w json
put a 4 --prev-kv -w fields
put a 5 -w table
put
put b x --ignore-value
put a --ignore-value -w json
put a 6 --ignore-lease
put none --ignore-value
put leased v --lease=1234
put "" x
put stdin << from standard input
put dashes -- -v-
put ab 1
put abc 2
put b 9
* get a
* get a --prefix
* get "" --prefix --keys-only
* get a --prefix --count-only
* get none
get a --print-value-only
get a --hex
get a -w json --hex
get a --prefix --limit=1 -w json
get a --prefix --limit=2 -w fields
get a --prefix --order=DESCEND
get "" --prefix --sort-by=CREATE --order=DESCEND
get "" --prefix --sort-by=MODIFY
get "" --prefix --sort-by=VALUE
get "" --prefix --sort-by=VERSION
get "" --prefix --sort-by=KEY --order=DESCEND --limit=2
get a --rev=2 -w json
get a --rev=100000
get a --rev=-1
get a ac
get ab --from-key
get a --from-key --prefix
get a --consistency=s
get a --consistency=x
get "" --prefix --min-mod-rev=5 --max-mod-rev=9 -w json
get "" --prefix --min-create-rev=5 --max-create-rev=100
get "" --prefix --stream
get "" --prefix --stream -w json
get
get a --keys-only --count-only
del none
del ab --prev-kv
del abc --prev-kv -w json
del b -w fields --prev-kv
del b -w table
put r1 x
put r2 x
put r3 x
del r1 r3
del r --prefix --prev-kv
put r1 x
del r --from-key --prev-kv
del --range
txn << mod("a") > "0"\n\nput t 1\nget t\ndel none\n\nput t 2\n\n
txn -w json << value("t") = "2"\n\nput t 3\n\nget t\nput u 1\n\n
txn -w fields << create("t") = "0"\n\n\nget t\n\n
txn -w table << ver("t") = "1"\n\nget t\n\n\n
txn -i << version("t") > "0"\n\nput t 5\n\n\n
txn << version("t") > "0"\n\nput t 6\nput t 7\n\n\n
txn << mod("a" > 0\n\n\n\n
txn << nonsense\n\n\n\n
txn << mod("a") > "0"\n\nnonsense\n\n\n
lines=6 watch a --rev=2
lines=3 watch a --rev=4 --prev-kv -w json
lines=12 watch a --rev=3 --prev-kv -w fields
lines=8 watch r --prefix --rev=1 --prev-kv
lines=6 watch "" --from-key --rev=2
lines=6 watch a b --rev=2
lines=6 watch -i << watch a --rev=2\n
lines=1 watch -i << watch nothing\nprogress\n
watch
lines=3 watch a --rev=2 -- echo seen
lease grant 1000
lease grant 2000 -w json
lease grant 3000 -w fields
lease grant 3000 -w table
lease grant 0
lease grant x
lease grant 10000000000
put leased v --lease={lease1}
put leased --ignore-lease w -w json
* get leased --prefix
* lease timetolive {lease1}
* lease timetolive {lease1} --keys
lease timetolive 1234
lease timetolive 1234 -w json
~ lease list
* lease keep-alive {lease1} --once
lease keep-alive 1234 --once
lease revoke {lease1}
lease revoke {lease1}
lease revoke {lease2} -w json
lease revoke {lease3} -w fields
lease revoke {lease4} -w table
get leased --prefix
lease revoke
lock mutex echo inside
lock mutex --ttl=5 -- echo inside
lines=1 lock held --ttl=3000
lines=2 elect office me
del held --prefix
del office --prefix
elect office
@all alarm list
~ alarm list
alarm disarm
alarm disarm -w json
~ @all endpoint health
~ @all endpoint status
~ endpoint status --cluster
~ endpoint hashkv
~ @all endpoint hashkv --rev=5
~ endpoint hashkv --cluster
endpoint hashkv --rev=100000
@all defrag
sorted defrag --cluster
~ member list
~ member list --consistency=s
member add four --peer-urls=http://127.0.0.1:1 --learner
member add five --peer-urls=http://127.0.0.1:2 --learner
member add again --peer-urls=http://{peer}
member add four
~ member list
member promote {four}
member promote 1234
member update {four} --peer-urls=http://127.0.0.1:3
member update 1234 --peer-urls=http://127.0.0.1:3
member remove {four}
member remove {four}
member remove 1234
member remove x
~ member list
@all move-leader 1234
@all move-leader x
downgrade validate 3.6
downgrade validate 3.6.0
downgrade validate 3.5
downgrade validate 3.7
downgrade validate 4.0
downgrade validate x
downgrade cancel
snapshot save {dir}/one.db
@all snapshot save {dir}/two.db
compaction 5
compaction 5
compaction 8 --physical -w json
compaction 100000
compaction x
get a --rev=3
lines=1 watch a --rev=3
lines=1 watch a --rev=3 -w json
* role list
role add app
role add app
role add other -w json
* role get app
role get none
role grant-permission app readwrite app/ --prefix
role grant-permission app read from --from-key
role grant-permission app write one
role grant-permission app read two three -w json
role grant-permission app nonsense one
role grant-permission none read one
* role get app
role revoke-permission app one
role revoke-permission app two three
role revoke-permission app nothing
role revoke-permission app from --from-key
role get app
role delete other
role delete other
user add ann:secret
user add ann:secret
user add bob --new-user-password=secret
user add cy --no-password
user add dee --interactive=false << hidden\n
user add "" --new-user-password=x
user add root:secret -w json
* user list
user grant-role ann app
user grant-role ann app
user grant-role ann none
user grant-role nobody app
* user get ann
user get ann --detail
user get nobody
user revoke-role ann app
user revoke-role ann app
user grant-role ann app
user passwd bob --interactive=false << other\n
user delete bob
user delete bob
* auth status
auth disable
auth enable
auth status --user=root:secret
get a
get a --user=ann:wrong
get a --user=nobody:x
put app/x 1 --user=ann:secret
put app/x 2 --user=ann --password=secret
get a --user=ann:secret
get "" --prefix --user=ann:secret
user list --user=ann:secret
role list --user=ann:secret
user get ann --user=ann:secret
role get app --user=ann:secret
~ @all endpoint health --user=ann:secret
lease grant 60 --user=ann:secret
lease revoke {lease5} --user=ann:secret
lines=3 watch app/x --rev=3 --user=ann:secret
watch other --user=ann:secret
sorted member list --user=ann:secret
compaction 9 --user=ann:secret
snapshot save {dir}/no.db --user=ann:secret
defrag --user=ann:secret
alarm list --user=ann:secret
get a --user=cy:x
auth enable --user=root:secret
user delete root --user=root:secret
role delete root --user=root:secret
auth disable --user=root:secret -w json
get a
"#;

const FORMATS: [&str; 4] = ["simple", "json", "fields", "table"];

struct Call {
    text: String,
    args: Vec<String>,
    all: bool,
    unordered: bool,
    lines: Option<usize>,
    input: String,
}

fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    for text in CALLS.lines().filter(|line| !line.is_empty()) {
        let (words, input) = text.split_once(" << ").unwrap_or((text, ""));
        let mut words = words.split(' ').map(|word| word.trim_matches('"').to_owned()).peekable();
        let mut call = Call {
            text: text.to_owned(),
            args: Vec::new(),
            all: false,
            unordered: false,
            lines: None,
            input: input.replace("\\n", "\n"),
        };
        let mut formats = &FORMATS[..0];
        while let Some(word) = words.peek() {
            match word.as_str() {
                "*" => formats = &FORMATS,
                "~" => (formats, call.unordered) = (&FORMATS, true),
                "sorted" => call.unordered = true,
                "@all" => call.all = true,
                _ => match word.strip_prefix("lines=") {
                    Some(lines) => call.lines = Some(lines.parse().unwrap()),
                    None => break,
                },
            }
            words.next();
        }
        call.args = words.collect();
        if formats.is_empty() {
            calls.push(call);
            continue;
        }
        for format in formats {
            let mut args = call.args.clone();
            args.extend(["-w".to_owned(), (*format).to_owned()]);
            let text = format!("{text} -w {format}");
            calls.push(Call { text, args, input: call.input.clone(), ..call });
        }
    }
    calls
}

/// Three members, and what stands for their IDs and addresses in what is compared.
struct Side {
    cluster: Cluster,
    /// What is replaced and by what.
    known: Vec<(String, String)>,
    /// What placeholders in the arguments stand for.
    places: Vec<(String, String)>,
    leases: usize,
}

impl Side {
    async fn start(program: Option<&Path>) -> Self {
        let mut cluster = Cluster::new(&["one", "two", "three"]);
        for member in &mut cluster.members {
            // Long enough that no election on a busy machine gets between.
            let ours = member.command(&["--heartbeat-interval=300", "--election-timeout=3000"]);
            let Some(program) = program else {
                member.start_as(ours);
                continue;
            };
            let mut theirs = Command::new(program);
            // It does not sync to disk: nothing here pulls its plug.
            theirs.env_clear().args(ours.get_args()).arg("--unsafe-no-fsync");
            member.start_as(theirs);
        }
        let mut known = Vec::new();
        for member in &cluster.members {
            member.ready().await;
            // What the first member writes as the version of the cluster, a moment after its start.
            eventually("the cluster has a version", async || match member.http("/version").await.1 {
                version if version.contains("\"etcdcluster\":\"3.7.0\"") => Ok(()),
                other => Err(other),
            })
            .await;
            let header = member.status().await.unwrap().header.unwrap();
            let id = header.member_id;
            known.push((format!("{:x}", header.cluster_id), "<cluster>".to_owned()));
            known.push((format!("{id:x}"), format!("<{}>", member.name)));
            known.push((id.to_string(), format!("<{}>", member.name)));
            known.push((member.client.clone(), format!("<{} client>", member.name)));
            known.push((member.peer.clone(), format!("<{} peer>", member.name)));
        }
        known.push((cluster.tmp.path().display().to_string(), "<dir>".to_owned()));
        let places = vec![("{dir}".to_owned(), cluster.tmp.path().display().to_string())];
        let mut side = Side { cluster, known, places, leases: 0 };
        side.places.push(("{four}".to_owned(), "0".to_owned()));
        side.places.push(("{peer}".to_owned(), side.cluster.members[0].peer.clone()));
        side
    }

    /// Makes the call, and returns what it wrote and how it ended, in a form that is the same on all clusters.
    fn make(&mut self, call: &Call) -> String {
        let members = &self.cluster.members;
        let asked = if call.all { members.len() } else { 1 };
        let endpoints: Vec<&str> = members[..asked].iter().map(|m| m.client.as_str()).collect();
        let mut command = Command::new(etcd_tool("etcdctl"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.arg(format!("--endpoints={}", endpoints.join(",")));
        // Two busy cores are slow.
        command.args(["--command-timeout=30s", "--dial-timeout=20s"]);
        for arg in &call.args {
            command.arg(self.places.iter().fold(arg.clone(), |arg, (place, value)| arg.replace(place, value)));
        }
        let output = run(command, call);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        self.learn(call, &out);
        let format = call.args.iter().skip_while(|a| *a != "-w").nth(1).map_or("simple", String::as_str);
        let mut lines: Vec<String> = Vec::new();
        for line in out.lines() {
            lines.extend(self.shown(call, format, line));
        }
        if call.unordered {
            lines.sort();
        }
        // What one that is ended in the middle says last is chance.
        if call.lines.is_none() {
            // The client's own log is none of the answer.
            for line in err.lines().filter(|line| !line.starts_with('{')) {
                lines.push(format!("! {}", plain(&self.mask(line))));
            }
            lines.push(format!("exit code {:?}", output.status.code()));
        }
        lines.join("\n")
    }

    /// Takes IDs that were given out from an answer.
    fn learn(&mut self, call: &Call, out: &str) {
        let word = |after: &str| {
            let rest = out.split_once(after).map(|(_, rest)| rest)?;
            Some(rest.trim_start().split(|c: char| !c.is_ascii_hexdigit()).next().unwrap().to_owned())
        };
        match &call.args[..2.min(call.args.len())] {
            [a, b] if a == "lease" && b == "grant" => {
                let decimal = word("\"ID\":").or_else(|| word("\"ID\" :")).and_then(|id| id.parse::<i64>().ok());
                let Some(hex) = decimal.map(|id| format!("{id:x}")).or_else(|| word("lease ")) else { return };
                // Whatever the format is that shows nothing, the list does.
                self.lease(&hex);
            }
            [a, b] if a == "member" && b == "add" => {
                if let Some(id) = word("Member ") {
                    self.known.push((id.clone(), "<four>".to_owned()));
                    self.known.push((u64::from_str_radix(&id, 16).unwrap().to_string(), "<four>".to_owned()));
                    self.places.push(("{four}".to_owned(), id));
                    self.places.retain(|(_, value)| value != "0");
                }
            }
            _ => {}
        }
    }

    fn lease(&mut self, hex: &str) {
        self.leases += 1;
        let name = format!("<lease{}>", self.leases);
        let id = i64::from_str_radix(hex, 16).unwrap();
        self.known.push((format!("{id:016x}"), name.clone()));
        self.known.push((id.to_string(), name));
        self.places.push((format!("{{lease{}}}", self.leases), format!("{id:x}")));
    }

    /// A line as it is compared; none if it is only there for the eyes.
    fn shown(&self, call: &Call, format: &str, line: &str) -> Option<String> {
        if let Some(list) = line.strip_prefix("ETCD_INITIAL_CLUSTER=") {
            let list = self.mask(list);
            let mut members: Vec<&str> = list.trim_matches('"').split(',').collect();
            members.sort_unstable();
            return Some(format!("ETCD_INITIAL_CLUSTER={}", members.join(",")));
        }
        match format {
            "json" => match serde_json::from_str(line) {
                Ok(mut value) => {
                    self.mask_json(&mut value, call.unordered);
                    Some(value.to_string())
                }
                Err(_) => Some(plain(&self.mask(line))),
            },
            "fields" => match line.split_once(" : ") {
                Some((name, _)) if MASKED_FIELDS.contains(&name.trim_matches('"')) => Some(format!("{name} : #")),
                _ => Some(plain(&self.mask(line))),
            },
            "table" => {
                // Borders, and the cells' widths, depend on what is in the cells.
                let cells: Vec<&str> = line.split('│').map(str::trim).collect();
                let inner = cells.get(1..cells.len() - 1).filter(|inner| !inner.is_empty());
                match inner {
                    Some(inner) => Some(self.columns(call, inner)),
                    None => (!line.starts_with(['┌', '├', '└'])).then(|| plain(&self.mask(line))),
                }
            }
            _ if call.args.starts_with(&["endpoint".to_owned()]) => {
                Some(self.columns(call, &line.split(", ").collect::<Vec<_>>()))
            }
            _ => Some(plain(&self.mask(line))),
        }
    }

    /// A row without the columns that hold sizes, who leads, terms, log positions and hashes.
    fn columns(&self, call: &Call, cells: &[&str]) -> String {
        let own: &[usize] = match call.args[1].as_str() {
            "status" if cells[0] != "ENDPOINT" => &[4, 5, 6, 8, 10, 11, 12],
            "hashkv" if cells[0] != "ENDPOINT" => &[1],
            _ => &[],
        };
        let shown = cells.iter().enumerate().map(|(at, cell)| match own.contains(&at) {
            true => "#".to_owned(),
            false => plain(&self.mask(cell)),
        });
        shown.collect::<Vec<_>>().join("|")
    }

    fn mask(&self, line: &str) -> String {
        self.known.iter().fold(line.to_owned(), |line, (what, by)| line.replace(what, by))
    }

    fn mask_json(&self, value: &mut Value, unordered: bool) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    match MASKED_JSON.contains(&name.as_str()) {
                        true => *value = "#".into(),
                        false => self.mask_json(value, unordered),
                    }
                }
            }
            Value::Array(items) => {
                items.iter_mut().for_each(|item| self.mask_json(item, unordered));
                if unordered {
                    items.sort_by_key(Value::to_string);
                }
            }
            Value::String(text) => *text = plain(&self.mask(text)),
            Value::Number(number) => {
                let text = number.to_string();
                match self.known.iter().find(|(what, _)| *what == text) {
                    Some((_, name)) => *value = name.as_str().into(),
                    None if is_id(&text) => *value = "<id>".into(),
                    None => {}
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
}

/// What differs between any two clusters: IDs of the cluster, of a member that answers, positions in its log, sizes.
const MASKED_JSON: [&str; 11] = [
    "cluster_id",
    "raft_term",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "dbSize",
    "dbSizeInUse",
    "hash",
    "took",
    "ttl",
    "leader",
];
const MASKED_FIELDS: [&str; 10] = [
    "ClusterID",
    "RaftTerm",
    "RaftIndex",
    "RaftAppliedIndex",
    "DBSize",
    "DBSizeInUse",
    "Hash",
    "Took",
    "Leader",
    "TTL",
];

/// A line without times, remaining seconds and IDs that nobody learned.
fn plain(line: &str) -> String {
    // etcdctl fills up a short ID with spaces.
    let shown = line.split(' ').filter(|word| !word.is_empty()).map(|word| {
        let (core, end) = word.split_at(word.trim_end_matches([',', '.', ';']).len());
        let unit = core.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if unit.len() < core.len() && ["s", "ms", "µs"].contains(&unit) {
            return format!("<time>{end}");
        }
        if let Some((before, _)) = core.split_once("remaining(") {
            return format!("{before}remaining(<time>){end}");
        }
        // An ID by itself, or the lease in a lock's key.
        match core.rsplit_once('/') {
            Some((before, id)) if is_id(id) => format!("{before}/<id>{end}"),
            None if is_id(core) => format!("<id>{end}"),
            _ => word.to_owned(),
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Nothing else that is compared has so many digits.
fn is_id(text: &str) -> bool {
    text.len() >= 13 && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it to its end, or until it has said enough lines.
fn run(mut command: Command, call: &Call) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // One that refuses its arguments does not read.
    let _ = input.write_all(call.input.as_bytes());
    let Some(lines) = call.lines else {
        drop(input);
        return child.wait_with_output().unwrap();
    };
    let (send, receive) = std::sync::mpsc::channel();
    let out = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(out).lines().take(lines).map_while(Result::ok);
        // One that is killed has no reader any more.
        let _ = lines.try_for_each(|line| send.send(line));
    });
    let mut said = String::new();
    for _ in 0..lines {
        match receive.recv_timeout(PATIENCE) {
            Ok(line) => said = format!("{said}{line}\n"),
            Err(why) => {
                said = format!("{said}({why} instead of {lines} lines)\n");
                break;
            }
        }
    }
    child.kill().unwrap();
    let mut err = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut err).unwrap();
    Output { status: child.wait().unwrap(), stdout: said.into(), stderr: err }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_says_what_it_says_about_etcd() {
    let etcd = etcd_tool("etcd");
    let (mut theirs, mut ours) = tokio::join!(Side::start(Some(&etcd)), Side::start(None));
    let mut wrong = Vec::new();
    let calls = calls();
    for call in &calls {
        let (expected, got) = std::thread::scope(|scope| {
            let expected = scope.spawn(|| theirs.make(call));
            let got = ours.make(call);
            (expected.join().unwrap(), got)
        });
        if std::env::var_os("FERRETCD_SHOW").is_some() {
            eprintln!("--- etcdctl {}\n{expected}", call.text);
        }
        if expected != got {
            wrong.push(format!("etcdctl {}\n--- of etcd\n{expected}\n--- of ferretcd\n{got}\n", call.text));
        }
    }
    assert!(wrong.is_empty(), "{} of {} calls differ:\n{}", wrong.len(), calls.len(), wrong.join("\n"));
}

/// What is there, then what changes, from real etcd to this server and back.
#[tokio::test(flavor = "multi_thread")]
async fn make_mirror_copies_from_etcd_and_to_etcd() {
    let (etcd, cluster) = tokio::join!(Etcd::start(&[]), Cluster::start(&["solo"]));
    let theirs = Member::at(&etcd.client, cluster.tmp.path());
    let ours = &cluster.members[0];
    for (from, to, name) in [(&theirs, ours, "in/"), (ours, &theirs, "out/")] {
        from.put(&format!("{name}there"), "1").await.unwrap();
        from.put("outside", "1").await.unwrap();
        let mut mirror = from.etcdctl_command(&["make-mirror", &to.client, "--dest-prefix=copy/"]);
        mirror.arg(format!("--prefix={name}")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut mirror = mirror.spawn().unwrap();
        let copied = async |what: &str| {
            eventually(what, async || match to.etcdctl(&["get", "copy/", "--prefix"])? {
                all if all == what => Ok(()),
                other => Err(other),
            })
            .await;
        };
        copied("copy/there\n1\n").await;
        from.put(&format!("{name}new"), "2").await.unwrap();
        from.etcdctl(&["del", &format!("{name}there")]).unwrap();
        copied("copy/new\n2\n").await;
        mirror.kill().unwrap();
        mirror.wait().unwrap();
        to.etcdctl(&["del", "copy/", "--prefix"]).unwrap();
    }
}
