//! The demo: the whole product shown on a real cluster, step by step, each step checked. It leaves the cluster running.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bucket::Bucket;
use crate::cache::Cache;
use crate::cluster::{self, Options};
use crate::connect::{self, Cluster, Namespace};
use crate::datastore::Choice;
use crate::etcd::{self, EtcdCluster, backup_manifest, cluster_manifest, credentials, restored_manifest};
use crate::product;
use crate::progress::say;
use crate::run;
use crate::s3;
use crate::tools::Tools;
use crate::writer::{Writer, check_nothing_lost};

/// The local cluster, and the namespace of the demo in any cluster.
pub const NAME: &str = "demo";

/// How many steps there are; the number is in each step's headline.
const STEPS: usize = 11;

/// The first step that has a cluster to look at when it fails.
const CLUSTER_STEP: usize = 3;

/// How long an EtcdCluster may take to become Ready: 20 s are usual for three members, five times that on a busy machine,
/// and twice as long again before we call it broken.
const READY: Duration = Duration::from_secs(200);

/// How long a backup may take; its Job needs about 3 s.
const BACKUP: Duration = Duration::from_secs(120);

/// The longest pause of writes that still is "seconds": elections time out after 1 to 2 s, and a few may be needed.
const PAUSE: Duration = Duration::from_secs(15);

/// Puts before and after the leader goes, enough to show a stream.
const PUTS: u64 = 40;

/// Runs the demo.
pub fn run(cache: &Cache, tools: &Tools, datastore: Choice) -> Result<()> {
    let mut steps = Steps { began: Instant::now(), number: 0, title: String::new() };
    show(cache, tools, datastore, &mut steps).map_err(|error| {
        let failed = format!("step {} of {STEPS} failed: {}", steps.number, steps.title);
        if steps.number < CLUSTER_STEP {
            return error.context(failed);
        }
        let logs = match connect::elsewhere(cache) {
            Some(_) => "the logs are in the cluster".to_owned(),
            None => format!("logs of the node: {}", cache.run(NAME).join("logs").display()),
        };
        let look = format!(
            "look: {}\n  kubectl --namespace {NAME} get etcdclusters,etcdbackups,pods,events\n  kubectl --namespace {} logs deployment/{}",
            environment(cache),
            product::NAMESPACE,
            product::RELEASE
        );
        error.context(format!("{failed}\n{logs}\n{look}\nwhat went wrong"))
    })
}

/// Removes all that the demo made. The cache stays.
pub fn down(cache: &Cache) -> Result<()> {
    if connect::elsewhere(cache).is_none() {
        if !cluster::down(cache, NAME)? {
            say("there is no demo cluster");
        }
        return Ok(());
    }
    let cluster = Cluster::connect()?;
    // While the operator is there: it ends the EtcdClusters, whose finalizers it owns.
    for namespace in [NAME, s3::NAMESPACE] {
        cluster.kubectl(&["delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s"])?;
    }
    run::output(
        cluster
            .helm_command()?
            .args(["uninstall", product::RELEASE, "--ignore-not-found", "--wait"])
            .args(["--namespace", product::NAMESPACE]),
    )?;
    cluster.kubectl(&["delete", "namespace", product::NAMESPACE, "--ignore-not-found", "--timeout=180s"])?;
    say("what the demo made is gone; the custom resource definitions stay, as with every uninstall of the chart");
    Ok(())
}

/// Which step the demo is at.
struct Steps {
    began: Instant,
    number: usize,
    title: String,
}

impl Steps {
    fn next(&mut self, title: impl Display) {
        self.number += 1;
        self.title = title.to_string();
        say(format!("── {:2}/{STEPS} {}", self.number, self.title));
    }
}

fn show(cache: &Cache, tools: &Tools, datastore: Choice, steps: &mut Steps) -> Result<()> {
    steps.next("The tools: Kubernetes, etcdctl, Helm, the S3 server");
    tools.build_named(&[])?;

    steps.next("Server and operator");
    let programs = product::build(cache, &product::profile("release"))?;

    steps.next("A Kubernetes");
    let cluster = match connect::elsewhere(cache) {
        Some(_) => Cluster::connect()?,
        None => {
            // Anew each time: what an earlier demo left must not decide how this one goes.
            cluster::down(cache, NAME)?;
            let ferretcd = Some(programs.join("ferretcd"));
            cluster::up(cache, tools, &Options { name: NAME.to_owned(), datastore, ferretcd })?
        }
    };
    cluster.kubectl(&["delete", "namespace", NAME, "--ignore-not-found", "--timeout=180s"])?;

    steps.next("An S3 server, and the chart with the operator");
    s3::up(&cluster)?;
    product::install(&cluster, &programs)?;

    let namespace = cluster.namespace(NAME)?;
    let demo = EtcdCluster::new(&namespace, "demo")?;
    steps.next("kubectl apply of an EtcdCluster with three members");
    let began = Instant::now();
    apply(&namespace, &cluster_manifest(demo.name(), 3))?;
    demo.wait_ready(3, READY)?;
    say(format!("Ready 3/3 after {:.0} s:", began.elapsed().as_secs_f32()));
    show_output(&namespace.kubectl(&["get", "etcdclusters,pods"])?.stdout);

    steps.next("A put through one member, a get through another");
    let members = demo.members()?;
    let [first, .., last] = members.as_slice() else { bail!("there are {} members", members.len()) };
    demo.etcdctl(first, &["put", "greeting", "hello from the first member"])?;
    let got = demo.etcdctl(last, &["get", "greeting", "--print-value-only"])?;
    ensure!(got.trim() == "hello from the first member", "the get through {} gave {got:?}", last.name);
    say(format!("put through {}, got through {}: {}", first.name, last.name, got.trim()));

    steps.next("The leader's pod is deleted during a stream of puts");
    let writer = Writer::start(&demo, &members, "stream/");
    writer.wait_for(PUTS)?;
    let leader = demo.leader()?;
    let before = writer.acknowledged();
    let pod = format!("{leader}-0");
    let uid = namespace.pod_uid(&pod)?;
    namespace.kubectl(&["delete", "pod", &pod, "--wait=false"])?;
    say(format!("{before} puts are acknowledged; deleted the pod of the leader, {leader}"));
    writer.wait_for(PUTS)?;
    namespace.wait_for_new_pod(&pod, &uid, READY)?;
    demo.wait_ready(3, READY)?;
    let log = writer.finish()?;
    ensure!(
        log.longest_gap <= PAUSE,
        "writes were away for {:.1} s, more than {} s",
        log.longest_gap.as_secs_f32(),
        PAUSE.as_secs()
    );
    check_nothing_lost(&demo, &demo.members()?, "stream/", &log)?;
    say(format!(
        "{} led after it; the longest wait for a put was {:.2} s; {} puts acknowledged ({} tries had to be repeated), and every \
         one of them is there on every member",
        demo.leader()?,
        log.longest_gap.as_secs_f32(),
        log.acknowledged.len(),
        log.failures
    ));

    for (from, to) in [(3, 5), (5, 3)] {
        steps.next(format!("replicas {from} → {to}"));
        let began = Instant::now();
        demo.scale(to)?;
        demo.wait_ready(to, READY)?;
        let members = demo.members()?;
        ensure!(members.len() == usize::from(to), "there are {} pods, {to} are wanted", members.len());
        check_nothing_lost(&demo, &members, "stream/", &log)?;
        say(format!("Ready {to}/{to} after {:.0} s, with all data on every member", began.elapsed().as_secs_f32()));
    }

    steps.next("A backup into the object store");
    apply(&namespace, &credentials())?;
    apply(&namespace, &backup_manifest("first", demo.name(), s3::BUCKET, NAME))?;
    let backup = etcd::wait_for_backup(&namespace, "first", BACKUP)?;
    let key = backup["status"]["key"].as_str().context("the backup's status has no key")?;
    let bucket = Bucket::open(&cluster)?;
    let objects = bucket.list(key)?;
    ensure!(objects.len() == 2, "the store lists {objects:?}, a data object and its manifest are wanted");
    say(format!("the store lists, at revision {}:", backup["status"]["revision"]));
    show_output(&objects.iter().map(|(key, size)| format!("{size:>8} {key}\n")).collect::<String>());

    steps.next("A second cluster, restored from the backup");
    let began = Instant::now();
    let copy = EtcdCluster::new(&namespace, "copy")?;
    apply(&namespace, &restored_manifest(copy.name(), 3, "first"))?;
    copy.wait_ready(3, READY)?;
    let members = demo.members()?;
    let wanted = demo.contents(members.first().context("the demo cluster has no member")?, "")?;
    ensure!(wanted.len() > log.acknowledged.len(), "the first cluster has only {} keys", wanted.len());
    for member in copy.members()? {
        let found = copy.contents(&member, "")?;
        ensure!(
            found == wanted,
            "{} has {} keys, and they are not the {} of the first",
            member.name,
            found.len(),
            wanted.len()
        );
    }
    say(format!(
        "Ready 3/3 after {:.0} s; {} keys, equal in both clusters on every member:",
        began.elapsed().as_secs_f32(),
        wanted.len()
    ));
    show_output(&namespace.kubectl(&["get", "etcdclusters,etcdbackups"])?.stdout);

    say(format!("all {STEPS} steps done in {} s; the cluster keeps running", steps.began.elapsed().as_secs()));
    print_what_next(cache, &demo, &bucket)
}

fn apply(namespace: &Namespace<'_>, manifest: &str) -> Result<()> {
    namespace.apply(manifest).map(drop)
}

fn show_output(text: &str) {
    for line in text.lines() {
        eprintln!("        {line}");
    }
}

/// The shell line that makes kubectl, helm and etcdctl work with the demo's cluster.
fn environment(cache: &Cache) -> String {
    match (connect::elsewhere(cache), std::env::current_exe()) {
        (None, Ok(exe)) => format!("eval \"$({} cluster env --name {NAME})\"", exe.display()),
        (elsewhere, _) => format!("export KUBECONFIG='{}'", elsewhere.unwrap_or_default().display()),
    }
}

fn print_what_next(cache: &Cache, demo: &EtcdCluster<'_>, bucket: &Bucket) -> Result<()> {
    println!("Try next:\n  {}", environment(cache));
    if connect::elsewhere(cache).is_none() {
        println!(
            "  # that is: export KUBECONFIG='{}', and kubectl, helm and etcdctl on the PATH",
            cache.run(NAME).join("kubeconfig").display()
        );
        // A service, unlike a pod, keeps its address.
        println!(
            "  export ETCDCTL_ENDPOINTS=$(kubectl -n {NAME} get service {}-client -o jsonpath='{{.spec.clusterIP}}'):2379",
            demo.name()
        );
    } else {
        println!("  kubectl -n {NAME} port-forward service/{}-client 2379 &", demo.name());
    }
    println!("  etcdctl put a b; etcdctl get a; etcdctl member list --write-out=table");
    println!("  etcdctl watch --prefix '' &   # then put something");
    println!("  kubectl -n {NAME} get etcdclusters --watch");
    println!("  kubectl -n {NAME} scale etcdcluster {} --replicas=5", demo.name());
    println!("  kubectl -n {NAME} describe etcdcluster {}", demo.name());
    if connect::elsewhere(cache).is_none() {
        println!("  {}", bucket.list_command());
    }
    println!("  make demo-down   # removes all of it; the cache stays");
    Ok(())
}
