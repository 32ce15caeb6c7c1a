//! `ferretcd-e2e`: tools, images and a local Kubernetes from the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use ferretcd_e2e::cluster::{self, Options};
use ferretcd_e2e::datastore::Choice;
use ferretcd_e2e::oci::Image;
use ferretcd_e2e::{Cache, Cluster, Tools, bench, connect, demo, node, s3, suite};

/// Builds tools and images, and runs a real single-node Kubernetes on this host.
///
/// FERRETCD_CACHE names the cache folder (default ~/.cache/ferretcd). With KUBECONFIG set, that cluster is used instead of
/// a local one, and images go to the registry that IMAGE_REGISTRY names.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build what the cache does not have yet, and print the folder of each tool.
    Tools {
        /// etcd, pause, kubernetes, coredns, s3, helm; all of them if none is named.
        names: Vec<String>,
    },
    /// The local cluster.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Images, made without a daemon.
    #[command(subcommand)]
    Image(ImageVerb),
    /// The S3 server in the cluster.
    #[command(subcommand)]
    S3(S3Verb),
    /// Show the whole product on a real cluster, step by step, and leave it running.
    ///
    /// FERRETCD_PROFILE names the cargo profile of server and operator (default release).
    Demo(Choice),
    /// Remove all that `demo` made. The cache stays.
    DemoDown,
    /// Run the tests that need a cluster, on one of their own.
    ///
    /// FERRETCD_PROFILE names the cargo profile of server and operator (default dev).
    Test {
        #[command(flatten)]
        datastore: Choice,
        /// For the test binaries: a test's name, for example.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Tell the story of kube-apiserver on three members, 10,000 objects, on real etcd and on ours, and compare.
    ///
    /// FERRETCD_PROFILE names the cargo profile of the server (default release), FERRETCD_OBJECTS another number.
    TestControlPlane,
    /// Measure real etcd and ours by etcd's own `benchmark`, in turn, and print the ratios.
    ///
    /// FERRETCD_PROFILE names the cargo profile of the server (default release).
    Bench(bench::Options),
    /// The first process of a node; started by `cluster up` only.
    #[command(hide = true)]
    NodeInit { run: PathBuf, keep: Vec<PathBuf> },
}

#[derive(Subcommand)]
enum ClusterVerb {
    /// Bring it up. Nothing to do if it is up.
    Up {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        datastore: Choice,
        /// The server for `--etcd ferretcd`; the one beside this program if absent.
        #[arg(long)]
        ferretcd: Option<PathBuf>,
    },
    /// End it and remove all that it made. The cache stays.
    Down(Named),
    /// Show its node and pods, and which component has ended.
    Status(Named),
    /// Print the shell lines that make kubectl, helm and etcdctl work with it: eval "$(ferretcd-e2e cluster env)".
    Env(Named),
    /// Run a command in the node's namespaces: its processes, mounts and network.
    Exec {
        #[command(flatten)]
        named: Named,
        #[arg(last = true, required = true)]
        command: Vec<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Named {
    /// The cluster's name (default: FERRETCD_CLUSTER, else `local`).
    #[arg(long)]
    name: Option<String>,
}

impl Named {
    fn name(self, cache: &Cache) -> String {
        self.name.unwrap_or_else(|| connect::default_name(cache))
    }
}

#[derive(Subcommand)]
enum ImageVerb {
    /// Write an OCI archive of one program, with the shared libraries it needs.
    Build {
        /// The program.
        #[arg(long)]
        binary: PathBuf,
        /// Where it is in the image, which is also what runs (default: /usr/local/bin/<its file name>).
        #[arg(long)]
        entrypoint: Option<PathBuf>,
        /// A second name for it, in the same folder.
        #[arg(long)]
        link: Vec<PathBuf>,
        /// The image's name with its tag.
        #[arg(long)]
        name: String,
        /// The archive to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Load an OCI archive into the cluster.
    Load {
        archive: PathBuf,
        /// The image's name with its tag, as it was built.
        #[arg(long)]
        name: String,
    },
    /// Make the images of server and operator and load them into the cluster.
    Product {
        /// The folder with `ferretcd` and `ferretcd-operator`.
        #[arg(long, default_value = "target/debug")]
        from: PathBuf,
    },
    /// Make the toolbox image (a shell and etcdctl) and load it into the cluster.
    Toolbox,
}

#[derive(Subcommand)]
enum S3Verb {
    /// Bring it up with its bucket, and print its URL for this host.
    Up,
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ferretcd-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb) -> Result<ExitCode> {
    if let Verb::NodeInit { run, keep } = verb {
        node::init(&run, &keep)?;
        return Ok(ExitCode::FAILURE);
    }
    let cache = Cache::from_env()?;
    let tools = Tools::new(cache.clone());
    match verb {
        Verb::Tools { names } => {
            for (name, folder) in tools.build_named(&names)? {
                println!("{name} {}", folder.display());
            }
        }
        Verb::Cluster(verb) => return act_on_cluster(verb, &cache, &tools),
        Verb::Image(verb) => act_on_image(verb)?,
        Verb::S3(S3Verb::Up) => println!("{}", s3::up(&Cluster::connect()?)?),
        Verb::Demo(datastore) => demo::run(&cache, &tools, datastore)?,
        Verb::DemoDown => demo::down(&cache)?,
        Verb::Test { datastore, arguments } => return suite::run(&cache, &tools, datastore, &arguments),
        Verb::TestControlPlane => return suite::run_control_plane(&cache, &tools),
        Verb::Bench(options) => return bench::run(&cache, &tools, &options),
        Verb::NodeInit { .. } => bail!("only the node's own start uses this"),
    }
    Ok(ExitCode::SUCCESS)
}

fn act_on_cluster(verb: ClusterVerb, cache: &Cache, tools: &Tools) -> Result<ExitCode> {
    match verb {
        ClusterVerb::Up { named, datastore, ferretcd } => {
            let cluster = match connect::elsewhere(cache) {
                Some(_) => Cluster::connect()?,
                None => cluster::up(cache, tools, &Options { name: named.name(cache), datastore, ferretcd })?,
            };
            println!("KUBECONFIG={}", cluster.kubeconfig().display());
        }
        ClusterVerb::Down(named) => {
            let name = named.name(cache);
            if !cluster::down(cache, &name)? {
                println!("there is no cluster {name}");
            }
        }
        ClusterVerb::Status(named) => print!("{}", cluster::status(cache, tools, &named.name(cache))?),
        ClusterVerb::Env(named) => {
            let cluster = Cluster::local(cache, tools, &named.name(cache))?;
            println!("export KUBECONFIG='{}'", cluster.kubeconfig().display());
            for program in [tools.kubectl()?, tools.helm()?, tools.etcdctl()?] {
                if let Some(folder) = program.parent() {
                    println!("export PATH='{}':\"$PATH\"", folder.display());
                }
            }
        }
        ClusterVerb::Exec { named, command } => {
            let Some((program, args)) = command.split_first() else { bail!("there is no command to run") };
            let cluster = Cluster::local(cache, tools, &named.name(cache))?;
            let status = cluster.node_command(program)?.args(args).status()?;
            return Ok(u8::try_from(status.code().unwrap_or(1)).map_or(ExitCode::FAILURE, ExitCode::from));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn act_on_image(verb: ImageVerb) -> Result<()> {
    match verb {
        ImageVerb::Build { binary, entrypoint, link, name, out } => {
            let Some(file_name) = binary.file_name() else { bail!("{} is not a file", binary.display()) };
            let path = entrypoint.unwrap_or_else(|| PathBuf::from("/usr/local/bin").join(file_name));
            let mut image = Image::new(&name, &[&path.display().to_string()])?;
            image.program(&path, &binary)?;
            for link in link {
                let Some(target) = path.file_name() else { bail!("{} is not a file", path.display()) };
                image.link(&path.with_file_name(link), target.as_ref())?;
            }
            image.write(&out)
        }
        ImageVerb::Load { archive, name } => Cluster::connect()?.load_archive(&archive, &name),
        ImageVerb::Product { from } => Cluster::connect()?.load_product(&from),
        ImageVerb::Toolbox => Cluster::connect()?.load_toolbox(),
    }
}
