//! How fast, in ratios: real etcd and ours, started the same way on the same disk, answer etcd's own `benchmark` in turn.
//! One run compares two servers on one machine in one hour; its absolute figures say nothing about another machine.

pub mod load;
pub mod side;
pub mod table;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::load::{Figures, Row};
use self::side::Side;
use self::table::Table;
use crate::cache::Cache;
use crate::datastore::Store;
use crate::product;
use crate::progress::say;
use crate::tools::{Bin, Tools};
use crate::wait::{Probe, wait_until};

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often both servers take their turn at each row.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// The numbers of members: 1, 3 or both.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    pub members: Vec<u8>,
    /// Only rows whose name begins so.
    #[arg(long, default_value = "")]
    pub rows: String,
    /// Keys of the rows about size (memory, start, snapshot); 0 leaves them out.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u64,
    /// Where both keep their data; a new folder in it is made, and removed at the end.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print JSON instead of a Markdown table.
    #[arg(long)]
    pub json: bool,
}

/// How long a server may take to become ready, with a million keys to read.
const READY: Duration = Duration::from_secs(300);

/// A server is left alone for this long before its memory is read: what a load leaves behind is given back by then.
const REST: Duration = Duration::from_secs(10);

/// Builds both servers and etcd's `benchmark`, measures, and prints the table.
pub fn run(cache: &Cache, tools: &Tools, options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    ensure!(options.members.iter().all(|members| [1, 3].contains(members)), "--members takes 1, 3 or 1,3");
    tools.build_named(&["etcd".into()])?;
    let programs = product::build(cache, &product::profile("dist"))?;
    let program = |store| match store {
        Store::Etcd => tools.path(Bin::Etcd),
        Store::Ferretcd => Ok(programs.join("ferretcd")),
    };
    let bench = Bench {
        programs: [program(Store::Etcd)?, program(Store::Ferretcd)?],
        benchmark: tools.path(Bin::EtcdBenchmark)?,
        etcdctl: tools.etcdctl()?,
        folder: Folder::new(options.dir.as_deref())?,
    };
    let mut table = Table::default();
    for members in &options.members {
        bench.rates(options, *members, &mut table)?;
    }
    if options.keys > 0 && options.rows.is_empty() {
        bench.sizes(options, &mut table)?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&table.lines)?);
    } else {
        print!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows about size, and their units.
const SIZES: [(&str, &str); 4] = [
    ("resident memory after the load", "MiB"),
    ("resident memory after a restart", "MiB"),
    ("start after kill -9", "s"),
    ("snapshot save", "s"),
];

/// Which of the two is asked first: it changes, so that neither always follows the other's writes.
fn order(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

struct Bench {
    /// etcd's and ours.
    programs: [PathBuf; 2],
    benchmark: PathBuf,
    etcdctl: PathBuf,
    folder: Folder,
}

/// A folder that goes away with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: Option<&Path>) -> Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let path = parent.join(format!("ferretcd-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say(format!("removing {}: {error}", self.0.display()));
        }
    }
}

impl Bench {
    /// Both servers, ready, with `members` members each.
    fn sides(&self, members: u8) -> Result<[Side; 2]> {
        let start = |store: Store, program: &Path, host: u8| -> Result<Side> {
            let data = self.folder.0.join(format!("{}-{members}", store.name()));
            let side = Side::start(store, program, Ipv4Addr::new(127, 2, 0, host), members, &data)?;
            self.ready(&side)?;
            Ok(side)
        };
        let [etcd, ours] = &self.programs;
        Ok([start(Store::Etcd, etcd, 1)?, start(Store::Ferretcd, ours, 2)?])
    }

    fn ready(&self, side: &Side) -> Result<()> {
        wait_until(&format!("{} to be ready", side.store.name()), READY, || {
            side.etcdctl(&self.etcdctl, &["endpoint", "health"]).map(|_| Probe::Ready(()))
        })
    }

    /// The rows about speed. Both servers run all the time; while one is asked, the other only beats its heart.
    fn rates(&self, options: &Options, members: u8, table: &mut Table) -> Result<()> {
        let sides = self.sides(members)?;
        for side in &sides {
            for row in load::before() {
                row.run(&self.benchmark, side)?;
            }
        }
        for row in load::rows().into_iter().filter(|row| row.name.starts_with(&options.rows)) {
            let mut figures = [Vec::new(), Vec::new()];
            for round in 0..options.rounds {
                for at in order(round) {
                    figures[at].push(row.run(&self.benchmark, &sides[at])?);
                }
            }
            let [etcd, ours] = figures;
            let said = table.add(members, &row, &etcd, &ours)?;
            say(format!("{members} members, {said}"));
        }
        Ok(())
    }

    /// The rows about size: memory with many keys, starting with them, a snapshot of them. Each round begins with empty members.
    fn sizes(&self, options: &Options, table: &mut Table) -> Result<()> {
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..options.rounds {
            let mut sides = self.sides(1)?;
            for at in order(round) {
                figures[at].push(self.size(&mut sides[at], options.keys)?);
            }
            for side in sides {
                side.remove()?;
            }
        }
        let [etcd, ours] = figures;
        for (at, (name, unit)) in SIZES.into_iter().enumerate() {
            let of = |rounds: &[[f64; SIZES.len()]]| rounds.iter().map(|figures| figures[at]).collect::<Vec<_>>();
            say(table.cost(1, &format!("{name}, {} keys", options.keys), unit, &of(&etcd), &of(&ours))?);
        }
        Ok(())
    }

    /// What [`SIZES`] names, of one server.
    fn size(&self, side: &mut Side, keys: u64) -> Result<[f64; SIZES.len()]> {
        say(format!("{}: {keys} keys", side.store.name()));
        load::fill(keys).run(&self.benchmark, side)?;
        std::thread::sleep(REST);
        let full = side.memory()?;
        let file = self.folder.0.join("snapshot.db");
        let began = Instant::now();
        let path = file.to_str().context("the folder's name is no text")?;
        side.etcdctl(&self.etcdctl, &["--command-timeout=600s", "snapshot", "save", path])?;
        let snapshot = began.elapsed();
        fs::remove_file(&file)?;
        let began = Instant::now();
        side.restart()?;
        while side.etcdctl(&self.etcdctl, &["get", "x"]).is_err() {
            if began.elapsed() > READY {
                bail!("{} did not start with {keys} keys in {} s", side.store.name(), READY.as_secs());
            }
        }
        let start = began.elapsed();
        std::thread::sleep(REST);
        Ok([full, side.memory()?, start.as_secs_f64(), snapshot.as_secs_f64()])
    }
}

/// The value in the middle; of two in the middle the mean.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(*values.get(middle - 1)?, *values.get(middle)?)),
    }
}

impl Row {
    fn run(&self, benchmark: &Path, side: &Side) -> Result<Figures> {
        let before = side.cpu()?;
        let said = side.benchmark(benchmark, &self.arguments)?;
        let cpu = side.cpu()? - before;
        let with = |e: anyhow::Error| e.context(format!("{} of {}:\n{said}", self.name, side.store.name()));
        load::figures(&said, cpu / self.operations as f64).map_err(with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}
