//! Stories of TLS with real processes and real clients: who gets in and who does not, and certificates that change while
//! everybody works.

use crate::support;
use crate::support::pki::{Cert, Pki};
use crate::support::{Cluster, Member, etcd_tool, eventually, finished};
use rustls::pki_types::ServerName;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A client that runs beside the test and ends with it, however that ends.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a cluster speak TLS everywhere, with these files.
fn secure(cluster: &mut Cluster, ca: &Path, cert: impl Fn(&str) -> Cert) {
    let members: Vec<String> = cluster.members.iter().map(|m| format!("{}=https://{}", m.name, m.peer)).collect();
    for member in &mut cluster.members {
        let Cert { cert, key } = cert(&member.name);
        let (cert, key, ca) = (cert.display(), key.display(), ca.display());
        let (client, peer) = (format!("https://{}", member.client), format!("https://{}", member.peer));
        member.flags = vec![
            format!("--initial-cluster={}", members.join(",")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--cert-file={cert}"),
            format!("--key-file={key}"),
            format!("--trusted-ca-file={ca}"),
            "--client-cert-auth".to_owned(),
            format!("--peer-cert-file={cert}"),
            format!("--peer-key-file={key}"),
            format!("--peer-trusted-ca-file={ca}"),
            "--peer-client-cert-auth".to_owned(),
        ];
    }
}

/// A tool of real etcd as a client of these members.
fn tool(name: &str, members: &[&Member], ca: &Path, cert: Option<&Cert>, args: &[&str]) -> Command {
    let mut command = Command::new(etcd_tool(name));
    let endpoints: Vec<String> = members.iter().map(|m| format!("https://{}", m.client)).collect();
    command.env_clear().arg(format!("--endpoints={}", endpoints.join(",")));
    command.arg(format!("--cacert={}", ca.display()));
    if let Some(Cert { cert, key }) = cert {
        command.arg(format!("--cert={}", cert.display())).arg(format!("--key={}", key.display()));
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// With much patience, for what must work on a busy machine.
fn etcdctl(member: &Member, ca: &Path, cert: Option<&Cert>, args: &[&str]) -> Result<String, String> {
    let mut command = tool("etcdctl", &[member], ca, cert, args);
    command.args(["--dial-timeout=20s", "--command-timeout=30s"]);
    finished(command.output().unwrap())
}

/// What etcdctl says whom the member does not let in: it tries until its time is over.
fn refused(member: &Member, ca: &Path, cert: Option<&Cert>) -> String {
    let mut command = tool("etcdctl", &[member], ca, cert, &["get", "k"]);
    command.args(["--dial-timeout=2s", "--command-timeout=4s"]);
    finished(command.output().unwrap()).unwrap_err()
}

async fn answers(member: &Member, ca: &Path, cert: Option<&Cert>) {
    eventually(&format!("{} answers", member.name), async || {
        etcdctl(member, ca, cert, &["get", "x"]).map_err(|e| format!("{e}\n{}", member.log()))
    })
    .await;
}

#[tokio::test]
async fn three_members_and_their_clients_know_each_other_and_change_their_certificates_at_work() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let dir = cluster.tmp.path().to_owned();
    let (pki, stranger) = (Pki::new(&dir), Pki::named(&dir, "stranger"));
    secure(&mut cluster, &pki.ca, |_| pki.issue("member", "member"));
    let client = pki.issue("client", "client");
    // No put is to fail: so no election, though the machine is busy.
    for member in &mut cluster.members {
        member.flags.extend(["--heartbeat-interval=300".to_owned(), "--election-timeout=3000".to_owned()]);
        member.start();
    }
    for member in &cluster.members {
        answers(member, &pki.ca, Some(&client)).await;
    }
    let [a, b, c] = &cluster.members[..] else { panic!() };
    etcdctl(a, &pki.ca, Some(&client), &["put", "k", "v"]).unwrap();
    assert_eq!(etcdctl(c, &pki.ca, Some(&client), &["get", "k", "--print-value-only"]).unwrap(), "v\n");

    // Without a certificate, with a stranger's, and by somebody who does not trust the members: none gets in.
    let strange = stranger.issue("strange", "client");
    refused(a, &pki.ca, None);
    refused(a, &pki.ca, Some(&strange));
    refused(a, &stranger.ca, Some(&client));
    assert!(a.log().contains("rejected connection on client endpoint"), "{}", a.log());

    // Clients at work, while authority and certificates are replaced in the usual three steps.
    let mut watch = tool("etcdctl", &[b], &pki.ca, Some(&client), &["watch", "end"]);
    let mut watch = Beside(watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut load = tool(
        "benchmark",
        &[a, b, c],
        &pki.ca,
        Some(&client),
        &["put", "--conns=3", "--clients=6", "--total=1500", "--rate=300", "--val-size=16"],
    );
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let old_ca = dir.join("old-ca.pem");
    fs::write(&old_ca, &pki.ca_pem).unwrap();
    let next = Pki::named(&dir, "next");
    // Written beside and renamed, so that no new connection sees half of it.
    let replace_ca = |text: &str| {
        fs::write(dir.join("ca.new"), text).unwrap();
        fs::rename(dir.join("ca.new"), &pki.ca).unwrap();
    };
    replace_ca(&format!("{}{}", pki.ca_pem, next.ca_pem));
    next.issue("member", "member");
    let next_client = next.issue("next-client", "client");
    for member in &cluster.members {
        etcdctl(member, &next.ca, Some(&next_client), &["get", "k"]).unwrap();
        etcdctl(member, &next.ca, Some(&client), &["get", "k"]).unwrap();
        refused(member, &old_ca, Some(&client));
    }
    replace_ca(&next.ca_pem);
    refused(a, &next.ca, Some(&client));
    etcdctl(a, &next.ca, Some(&next_client), &["put", "end", "1"]).unwrap();

    let load = finished(load.wait_with_output().unwrap()).unwrap();
    assert!(load.contains("Requests/sec") && !load.contains("Error distribution"), "{load}");
    let mut seen = [0; 3];
    watch.0.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"PUT");

    // A member that comes back meets the others by the new authority alone.
    let c = &mut cluster.members[2];
    c.kill();
    c.start();
    answers(c, &next.ca, Some(&next_client)).await;
}

#[tokio::test]
async fn revoked_certificates_and_those_for_other_hosts_stay_outside() {
    let mut cluster = Cluster::new(&["a"]);
    let dir = cluster.tmp.path().to_owned();
    let pki = Pki::new(&dir);
    secure(&mut cluster, &pki.ca, |_| pki.issue("member", "member"));
    let crl = dir.join("revoked.der");
    pki.revoke(&crl, &[]);
    cluster.members[0].flags.push(format!("--client-crl-file={}", crl.display()));
    cluster.members[0].flags.push("--client-cert-allowed-hostname=other.example,good.example".to_owned());
    let good = pki.issue_for("good", "one", 0x80ff, &["good.example"]);
    let second = pki.issue_for("second", "two", 7, &["good.example"]);
    let other = pki.issue_for("other", "one", 8, &["bad.example"]);
    let member = &mut cluster.members[0];
    member.start();
    let member = &cluster.members[0];
    answers(member, &pki.ca, Some(&good)).await;
    refused(member, &pki.ca, Some(&other));
    assert!(member.log().contains("client certificate authentication failed"), "{}", member.log());

    pki.revoke(&crl, &[1, 0x80ff]);
    refused(member, &pki.ca, Some(&good));
    assert!(member.log().contains("certificate serial 80ff revoked"), "{}", member.log());
    etcdctl(member, &pki.ca, Some(&second), &["get", "k"]).unwrap();
}

#[tokio::test]
async fn the_common_name_of_a_certificate_is_its_user() {
    let mut cluster = Cluster::new(&["a"]);
    let pki = Pki::new(cluster.tmp.path());
    secure(&mut cluster, &pki.ca, |_| pki.issue("member", "member"));
    cluster.members[0].start();
    let member = &cluster.members[0];
    let (root, nobody) = (pki.issue("root", "root"), pki.issue("nobody", "nobody"));
    answers(member, &pki.ca, Some(&root)).await;
    for args in [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        etcdctl(member, &pki.ca, Some(&root), args).unwrap();
    }
    etcdctl(member, &pki.ca, Some(&root), &["put", "k", "v"]).unwrap();
    let refused = etcdctl(member, &pki.ca, Some(&nobody), &["put", "k", "v"]).unwrap_err();
    assert!(refused.contains("permission denied"), "{refused}");
}

#[tokio::test]
async fn a_stranger_at_the_peer_door_is_refused_and_the_group_is_not_disturbed() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let dir = cluster.tmp.path().to_owned();
    let (pki, other) = (Pki::new(&dir), Pki::named(&dir, "other"));
    secure(&mut cluster, &pki.ca, |name| pki.issue(name, "member"));
    let (good, strange) = (pki.issue("good", "member"), other.issue("strange", "member"));
    // No election is to come but from outside, though the machine is busy.
    for member in &mut cluster.members {
        member.flags.extend(["--heartbeat-interval=300".to_owned(), "--election-timeout=3000".to_owned()]);
        member.start();
    }
    for member in &cluster.members {
        answers(member, &pki.ca, Some(&good)).await;
    }
    let member = &cluster.members[0];
    let leader_and_term = || {
        let args = ["endpoint", "status", "--cluster", "--write-out=fields"];
        let said = etcdctl(member, &pki.ca, Some(&good), &args).unwrap();
        let is_one = |line: &&str| line.starts_with("\"Leader\"") || line.starts_with("\"RaftTerm\"");
        said.lines().filter(is_one).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = leader_and_term();
    // The term is in the header, too.
    assert_eq!(before.len(), 9, "{before:?}");
    let caller = |cert: Option<&Cert>| client_with(&pki, &[&rustls::version::TLS13], &["http/1.1"], cert);
    let call =
        |cert: Option<&Cert>| ask(caller(cert), &member.peer, "/version").map(|(_, said)| said).unwrap_or_default();
    assert_ne!(call(Some(&good)), "", "who is let in hears something");
    for (cert, why) in [(None, "peer sent no certificates"), (Some(&strange), "UnknownIssuer")] {
        for _ in 0..20 {
            assert_eq!(call(cert), "");
        }
        let said = |l: &str| l.contains("rejected connection on peer endpoint") && l.contains(why);
        assert!(member.log().lines().any(said), "{why}: {}", member.log());
    }
    etcdctl(member, &pki.ca, Some(&good), &["put", "k", "v"]).unwrap();
    assert_eq!(leader_and_term(), before);
}

#[tokio::test]
async fn a_member_whose_name_is_not_allowed_or_whose_address_is_not_its_own_is_refused_by_its_peers() {
    for (name, hosts, refusal) in [
        ("stranger", &["127.0.0.1"][..], "client certificate authentication failed"),
        ("member", &["127.0.0.9"], "certificate is valid for [127.0.0.9], not 127.0.0.1"),
        ("member", &["nowhere.invalid"], "does not match any of DNSNames"),
    ] {
        let mut cluster = Cluster::new(&["a", "b"]);
        let pki = Pki::new(cluster.tmp.path());
        secure(&mut cluster, &pki.ca, |name| pki.issue(name, "member"));
        // It listens with a good certificate, and calls with the other one.
        let wrong = pki.issue_for("wrong", name, 5, hosts);
        for member in &mut cluster.members {
            member.flags.push("--peer-cert-allowed-cn=boss,member".to_owned());
        }
        let b = &mut cluster.members[1];
        b.flags.push(format!("--peer-client-cert-file={}", wrong.cert.display()));
        b.flags.push(format!("--peer-client-key-file={}", wrong.key.display()));
        cluster.members.iter_mut().for_each(Member::start);
        eventually(refusal, async || {
            let log = cluster.members[0].log();
            let said = |l: &str| l.contains("rejected connection on peer endpoint") && l.contains(refusal);
            if log.lines().any(said) { Ok(()) } else { Err(log) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_member_is_called_only_if_its_name_is_allowed() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let pki = Pki::new(cluster.tmp.path());
    // b shows a good certificate when it calls, and another name when it is called.
    secure(&mut cluster, &pki.ca, |name| pki.issue(name, if name == "a" { "member" } else { "stranger" }));
    let good = pki.issue("good", "member");
    for member in &mut cluster.members {
        member.flags.push("--peer-cert-allowed-cn=member".to_owned());
    }
    let b = &mut cluster.members[1];
    b.flags.push(format!("--peer-client-cert-file={}", good.cert.display()));
    b.flags.push(format!("--peer-client-key-file={}", good.key.display()));
    cluster.members.iter_mut().for_each(Member::start);
    let b = format!("https://{}", cluster.members[1].peer);
    eventually("a says why it does not call b", async || {
        let log = cluster.members[0].log();
        let said = |l: &str| l.contains(&b) && l.contains("client certificate authentication failed");
        if log.lines().any(said) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn a_member_is_called_only_if_a_known_authority_says_that_it_is_at_its_address() {
    for (is_known, host, refusal) in
        [(false, "127.0.0.1", "UnknownIssuer"), (true, "127.0.0.9", "certificate not valid for name")]
    {
        let mut cluster = Cluster::new(&["a", "b"]);
        let dir = cluster.tmp.path().to_owned();
        let (pki, other) = (Pki::new(&dir), Pki::named(&dir, "other"));
        // b shows a good certificate when it calls, and this one when it is called.
        let authority = if is_known { &pki } else { &other };
        let (good, wrong) = (pki.issue("good", "member"), authority.issue_for("wrong", "member", 5, &[host]));
        secure(&mut cluster, &pki.ca, |name| if name == "a" { good.clone() } else { wrong.clone() });
        let b = &mut cluster.members[1];
        b.flags.push(format!("--peer-client-cert-file={}", good.cert.display()));
        b.flags.push(format!("--peer-client-key-file={}", good.key.display()));
        b.start();
        // Of one that does not listen yet a would tell once, and again after ten seconds.
        eventually("b listens", async || TcpStream::connect(&b.peer).map_err(|e| e.to_string())).await;
        let b = format!("https://{}", b.peer);
        cluster.members[0].start();
        eventually(refusal, async || {
            let log = cluster.members[0].log();
            let said = |l: &str| l.contains(&b) && l.contains(refusal);
            if log.lines().any(said) { Ok(()) } else { Err(log) }
        })
        .await;
    }
}

#[tokio::test]
async fn one_self_signed_certificate_may_be_everything() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let everything = Pki::self_signed(cluster.tmp.path());
    secure(&mut cluster, &everything.cert, |_| everything.clone());
    cluster.members.iter_mut().for_each(Member::start);
    for member in &cluster.members {
        answers(member, &everything.cert, Some(&everything)).await;
    }
}

#[tokio::test]
async fn made_certificates_serve_without_any_file() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let members: Vec<String> = cluster.members.iter().map(|m| format!("{}=https://{}", m.name, m.peer)).collect();
    for member in &mut cluster.members {
        let (client, peer) = (format!("https://{}", member.client), format!("https://{}", member.peer));
        member.flags = vec![
            format!("--initial-cluster={}", members.join(",")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            "--auto-tls".to_owned(),
            "--peer-auto-tls".to_owned(),
        ];
        member.start();
    }
    let made = |m: &Member| m.dir.join("fixtures/client/cert.pem");
    for member in &cluster.members {
        answers(member, &made(member), None).await;
    }
    let before = fs::read(made(&cluster.members[0])).unwrap();
    let a = &mut cluster.members[0];
    assert_eq!(a.terminate().await, Some(0));
    a.start();
    answers(a, &made(a), None).await;
    assert_eq!(fs::read(made(a)).unwrap(), before, "a start made another certificate");
}

#[tokio::test]
async fn the_metrics_listener_compares_a_certificate_with_its_callers_address_and_the_client_listener_does_not() {
    let mut cluster = Cluster::new(&["a"]);
    let pki = Pki::new(cluster.tmp.path());
    secure(&mut cluster, &pki.ca, |_| pki.issue("member", "member"));
    let metrics = support::free_address();
    cluster.members[0].flags.push(format!("--listen-metrics-urls=https://{metrics}"));
    cluster.members[0].start();
    let member = &cluster.members[0];
    let (near, far) = (pki.issue("near", "x"), pki.issue_for("far", "x", 5, &["127.0.0.9"]));
    for cert in [&near, &far] {
        answers(member, &pki.ca, Some(cert)).await;
    }
    let tls13 = &rustls::version::TLS13;
    let ask = |cert: &Cert| ask(client_with(&pki, &[tls13], &["http/1.1"], Some(cert)), &metrics, "/health");
    let (_, text) = ask(&near).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let refused = ask(&far).map(|(_, text)| text);
    assert!(refused.as_ref().map_or(true, String::is_empty), "{refused:?}");
    let why = "certificate is valid for [127.0.0.9], not 127.0.0.1";
    eventually("the log says why", async || if member.log().contains(why) { Ok(()) } else { Err(member.log()) }).await;
}

#[tokio::test]
async fn unix_sockets_serve_etcdctl_with_tls_and_without() {
    let mut cluster = Cluster::new(&["a"]);
    let pki = Pki::new(cluster.tmp.path());
    // etcd's clients take the socket's name for the server's.
    let cert = pki.issue_for("member", "member", 1, &["localhost", "127.0.0.1", "secure.sock"]);
    secure(&mut cluster, &pki.ca, |_| cert.clone());
    let at = |name: &str| cluster.tmp.path().join(name).display().to_string();
    let (secure, plain) = (format!("unixs://{}", at("secure.sock")), format!("unix:{}", at("plain.sock")));
    let member = &mut cluster.members[0];
    member.flags.push(format!("--listen-client-urls=https://{},{secure},{plain}", member.client));
    member.start();
    let member = &cluster.members[0];
    answers(member, &pki.ca, Some(&cert)).await;
    let ctl = |endpoint: &str, flags: &[String], args: &[&str]| {
        let mut command = Command::new(etcd_tool("etcdctl"));
        command.env_clear().arg(format!("--endpoints={endpoint}")).arg("--command-timeout=20s").args(flags).args(args);
        finished(command.stdin(Stdio::null()).output().unwrap())
    };
    let caller = pki.issue_for("caller", "caller", 2, &["elsewhere"]);
    let flags = [
        format!("--cacert={}", pki.ca.display()),
        format!("--cert={}", caller.cert.display()),
        format!("--key={}", caller.key.display()),
    ];
    assert_eq!(ctl(&secure, &flags, &["put", "k", "v"]).unwrap(), "OK\n");
    assert_eq!(ctl(&plain, &[], &["get", "k", "--print-value-only"]).unwrap(), "v\n");
    let mut watch = Command::new(etcd_tool("etcdctl"));
    watch.env_clear().arg(format!("--endpoints={secure}")).args(&flags).args(["watch", "k", "--rev=1"]);
    let mut watch = watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = [0; 8];
    watch.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(&text, b"PUT\nk\nv\n");
    // Without a certificate, and without TLS, nobody comes in there.
    ctl(&secure, &["--command-timeout=3s".to_owned(), flags[0].clone()], &["get", "k"]).unwrap_err();
    let unsafe_name = format!("unix://{}", at("secure.sock"));
    ctl(&unsafe_name, &["--command-timeout=3s".to_owned()], &["get", "k"]).unwrap_err();
}

/// One request over TLS, or why there was none; with the protocol that was agreed on.
fn ask(config: rustls::ClientConfig, address: &str, path: &str) -> Result<(Option<Vec<u8>>, String), String> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).map_err(|e| e.to_string())?;
    let mut tcp = TcpStream::connect(address).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").map_err(|e| e.to_string())?;
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    Ok((tls.alpn_protocol().map(<[u8]>::to_vec), text))
}

fn client(pki: &Pki, versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[&str]) -> rustls::ClientConfig {
    client_with(pki, versions, alpn, None)
}

fn client_with(
    pki: &Pki,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
    cert: Option<&Cert>,
) -> rustls::ClientConfig {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match cert {
        Some(cert) => {
            let chain = vec![CertificateDer::from_pem_file(&cert.cert).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&cert.key).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

#[tokio::test]
async fn one_port_speaks_both_and_the_lowest_version_is_kept() {
    let mut cluster = Cluster::new(&["a"]);
    let pki = Pki::new(cluster.tmp.path());
    let cert = pki.issue("member", "member");
    let metrics = support::free_address();
    let member = &mut cluster.members[0];
    member.flags.extend([
        format!("--listen-client-urls=http://{0},https://{0}", member.client),
        format!("--listen-metrics-urls=https://{metrics}"),
        format!("--cert-file={}", cert.cert.display()),
        format!("--key-file={}", cert.key.display()),
        "--tls-min-version=TLS1.3".to_owned(),
    ]);
    member.start();
    let member = &cluster.members[0];
    member.ready().await;
    answers(member, &pki.ca, None).await;
    assert_eq!(member.http("/health").await.0, 200);

    // Somebody who says nothing keeps nobody else out.
    let _silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(&member.client).unwrap()).collect();
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    for address in [&member.client, &metrics] {
        let (protocol, text) = ask(client(&pki, &[tls13], &["http/1.1"]), address, "/health").unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("{\"health\":\"true\",\"reason\":\"\"}"), "{text}");
        assert_eq!(protocol.as_deref(), Some(&b"http/1.1"[..]));
        let both = ask(client(&pki, &[tls13], &["h2", "http/1.1"]), address, "/health").unwrap();
        assert_eq!(both.0.as_deref(), Some(&b"h2"[..]));
        ask(client(&pki, &[tls12], &["http/1.1"]), address, "/health").unwrap_err();
    }
}
