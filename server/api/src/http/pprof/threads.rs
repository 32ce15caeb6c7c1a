//! The threads of this process, as the kernel counts their time.

use std::{collections::BTreeMap, fs};

/// One thread now. Its number is not given again while the process lives, for all that a profile's length allows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Thread {
    name: String,
    /// The kernel's letter: R runs, S and D wait.
    state: char,
    /// Ticks in user code.
    user: i64,
    /// Ticks in the kernel.
    kernel: i64,
}

/// All of them, by number.
#[derive(Clone, Debug, Default)]
pub struct Threads(BTreeMap<u32, Thread>);

impl Threads {
    /// Reads `/proc`. A thread that ends meanwhile is left out.
    pub fn now() -> Result<Self, String> {
        let tasks = fs::read_dir("/proc/self/task").map_err(|e| format!("cannot read /proc/self/task: {e}"))?;
        let thread = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, parse(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
        };
        Ok(Threads(tasks.filter_map(thread).collect()))
    }

    /// How many there are of each name, and of each state if that is asked for: the innermost first.
    pub fn counted(&self, by_state: bool) -> Vec<(Vec<String>, i64)> {
        let mut counted = BTreeMap::new();
        for thread in self.0.values() {
            let state = if thread.state == 'R' { "running" } else { "waiting" };
            let states = by_state.then(|| state.to_owned());
            let stack: Vec<String> = states.into_iter().chain([thread.name.clone()]).collect();
            *counted.entry(stack).or_insert(0) += 1;
        }
        counted.into_iter().collect()
    }
}

/// What threads spent between looks.
#[derive(Debug, Default)]
pub struct Spent {
    last: Threads,
    has_begun: bool,
    by_thread: BTreeMap<u32, (String, i64, i64)>,
}

impl Spent {
    /// Another look. One that was not there at the last has spent all its time since.
    pub fn look(&mut self, now: &Threads) {
        for (number, thread) in now.0.iter().filter(|_| self.has_begun) {
            let (user, kernel) = self.last.0.get(number).map_or((0, 0), |last| (last.user, last.kernel));
            let spent = self.by_thread.entry(*number).or_insert_with(|| (thread.name.clone(), 0, 0));
            spent.1 += (thread.user - user).max(0);
            spent.2 += (thread.kernel - kernel).max(0);
        }
        self.last = now.clone();
        self.has_begun = true;
    }

    /// Ticks by kind of code and thread's name. Idle ones are left out.
    pub fn by_stack(&self) -> Vec<(Vec<String>, i64)> {
        let mut ticks = BTreeMap::new();
        for (name, user, kernel) in self.by_thread.values() {
            for (code, spent) in [("user code", user), ("kernel", kernel)] {
                if *spent > 0 {
                    *ticks.entry(vec![code.to_owned(), name.clone()]).or_insert(0) += spent;
                }
            }
        }
        ticks.into_iter().collect()
    }
}

/// Length of a tick.
pub fn tick_nanos() -> i64 {
    1_000_000_000 / i64::try_from(rustix::param::clock_ticks_per_second().max(1)).unwrap_or(i64::MAX)
}

/// A line of `stat`: the name is in brackets and may hold anything, and the numbering of fields begins with 3 behind it.
fn parse(stat: &str) -> Option<Thread> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse().ok();
    Some(Thread { name, state: fields.first()?.chars().next()?, user: ticks(14)?, kernel: ticks(15)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(all: &[(u32, &str, i64, i64)]) -> Threads {
        let thread = |(number, name, user, kernel): &(u32, &str, i64, i64)| {
            (*number, Thread { name: (*name).to_owned(), state: 'S', user: *user, kernel: *kernel })
        };
        Threads(all.iter().map(thread).collect())
    }

    #[test]
    fn a_name_with_brackets_is_a_name() {
        let line = "12 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 70 30 0 0";
        assert_eq!(parse(line), Some(Thread { name: "a (b) c".into(), state: 'R', user: 70, kernel: 30 }));
        assert_eq!(parse("12 (a"), None);
    }

    #[test]
    fn time_counts_from_the_first_look_and_stays_when_a_thread_ends() {
        let mut spent = Spent::default();
        spent.look(&threads(&[(1, "old", 100, 50), (2, "ends", 10, 0)]));
        spent.look(&threads(&[(1, "old", 103, 50), (2, "ends", 12, 0), (3, "new", 5, 1)]));
        spent.look(&threads(&[(1, "old", 104, 50)]));
        let stack = |code: &str, name: &str| vec![code.to_owned(), name.to_owned()];
        let expected = [
            (stack("kernel", "new"), 1),
            (stack("user code", "ends"), 2),
            (stack("user code", "new"), 5),
            (stack("user code", "old"), 4),
        ];
        assert_eq!(spent.by_stack(), expected);
    }

    #[test]
    fn this_thread_is_among_them() {
        let counted = Threads::now().unwrap().counted(false);
        assert!(counted.iter().any(|(_, n)| *n > 0));
    }
}
