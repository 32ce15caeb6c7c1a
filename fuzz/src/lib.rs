//! A fuzzer that is a test: every decoder of bytes from outside has a test named `fuzz_…` that hands them over. It runs
//! the corpus and some mutations of it each time, and for `FERRETCD_FUZZ_SECONDS` if that is set (`make test-long`).
//!
//! It is led by answers instead of coverage: an input whose answer has not been heard before is kept and mutated further.
//! Decision 0010 says why.

// This crate is of use in tests alone, and fails them by panicking.
#![allow(clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Mutations that every run makes: a second or less for most decoders, without optimisation.
const QUICK: u64 = 1500;
/// Inputs that are kept to be mutated; a full pool takes a new one in an old one's place.
const POOL_MAX: usize = 4096;
/// Longest input that mutation makes. Bounds of size have tests of their own.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// An input that takes longer is a finding, too. A decoder needs microseconds; this is for a busy machine.
const SLOW: Duration = Duration::from_secs(20);
/// Files that `FERRETCD_FUZZ_SAVE` adds to a corpus, and their largest size: a corpus stays small.
const SAVED_MAX: usize = 12;
const SAVED_BYTES_MAX: usize = 2048;

/// One decoder with what it is fed.
#[derive(Debug)]
pub struct Fuzz {
    name: &'static str,
    corpus: PathBuf,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    quick: u64,
}

impl Fuzz {
    /// A target. Its corpus is `corpus/<name>/` in the crate whose `CARGO_MANIFEST_DIR` this is.
    pub fn new(crate_dir: &str, name: &'static str) -> Self {
        Fuzz {
            name,
            corpus: Path::new(crate_dir).join("corpus").join(name),
            seeds: vec![Vec::new()],
            words: Vec::new(),
            quick: QUICK,
        }
    }

    /// Inputs to begin with, beside the files of the corpus.
    pub fn seeds<S: Into<Vec<u8>>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.seeds.extend(seeds.into_iter().map(Into::into));
        self
    }

    /// Pieces of the language that the decoder reads, which mutation would hardly find by itself.
    pub fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    /// So many mutations in every run, for a decoder of which the usual number takes longer than a second.
    pub fn quick(self, mutations: u64) -> Self {
        Fuzz { quick: mutations, ..self }
    }

    /// Hands everything to `decode`, whose answer says what became of an input: an error's text, or some of what was read.
    ///
    /// # Panics
    /// With the input, if `decode` panics or takes too long.
    pub fn run<A: Into<String>>(self, decode: impl Fn(&[u8]) -> A) {
        let seconds = std::env::var("FERRETCD_FUZZ_SECONDS").ok().and_then(|s| s.parse::<u64>().ok());
        let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        // A long run goes elsewhere each time; a short one is the same everywhere.
        let mut random = Random(if end.is_some() { clock() } else { 1 });
        // Their hashes: a decoder that repeats what it read has a million answers in five minutes.
        let mut heard = BTreeSet::new();
        let mut pool = self.seeds.clone();
        pool.extend(self.files());
        for input in &pool {
            heard.insert(hash(self.answer(&decode, input).as_bytes()));
        }
        let known = heard.len();
        let (mut made, mut saved) = (0, self.files().count());
        while end.map_or(made < self.quick, |end| Instant::now() < end) {
            made += 1;
            let input = self.mutated(&pool, &mut random);
            if !heard.insert(hash(self.answer(&decode, &input).as_bytes())) {
                continue;
            }
            if std::env::var_os("FERRETCD_FUZZ_SAVE").is_some() && saved < SAVED_MAX && input.len() <= SAVED_BYTES_MAX {
                saved += 1;
                self.save(&self.corpus, &input);
            }
            if pool.len() < POOL_MAX {
                pool.push(input);
            } else if let Some(old) = random.pick_mut(&mut pool) {
                *old = input;
            }
        }
        println!("{}: {made} inputs, {known} answers at first, {} at last", self.name, heard.len());
    }

    fn files(&self) -> impl Iterator<Item = Vec<u8>> {
        let files = fs::read_dir(&self.corpus).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
        // Directories are listed in no order.
        paths.sort();
        paths.into_iter().filter_map(|path| fs::read(path).ok())
    }

    /// The answer to one input, in the form in which answers are told apart.
    fn answer<A: Into<String>>(&self, decode: &impl Fn(&[u8]) -> A, input: &[u8]) -> String {
        let begun = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| decode(input).into()));
        let took = begun.elapsed();
        match answer {
            Ok(answer) if took < SLOW => normal(&answer),
            Ok(_) => self.found(input, &format!("took {took:?}")),
            Err(_) => self.found(input, "panicked"),
        }
    }

    fn found(&self, input: &[u8], what: &str) -> ! {
        let path = self.save(&std::env::temp_dir().join("ferretcd-fuzz").join(self.name), input);
        let shown = input.get(..512).unwrap_or(input).escape_ascii();
        panic!("{} {what} on {} ({} bytes): b\"{shown}\"", self.name, path.display(), input.len());
    }

    /// Writes an input to a file that is named by its content. One that cannot be written is shown all the same.
    fn save(&self, dir: &Path, input: &[u8]) -> PathBuf {
        let path = dir.join(format!("{:016x}", hash(input)));
        if let Err(e) = fs::create_dir_all(dir).and_then(|()| fs::write(&path, input)) {
            println!("{}: cannot write {}: {e}", self.name, path.display());
        }
        path
    }

    fn mutated(&self, pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        let mut input = random.pick(pool).cloned().unwrap_or_default();
        for _ in 0..=random.below(4) {
            self.mutate(&mut input, pool, random);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn mutate(&self, input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
        let at = random.below(input.len() + 1);
        let span = at..input.len().min(at + 1 + random.below(16));
        match random.below(11) {
            0 => flip(input, at, 1 << random.below(8)),
            1 => set(input, at, &[random.byte()]),
            2 => drop(input.drain(span)),
            3 => insert(input, at, &vec![random.byte(); 1 + random.below(8)]),
            4 => {
                let twice = input.get(span).unwrap_or_default().to_vec();
                insert(input, at, &twice);
            }
            5 => {
                let number = random.number().to_le_bytes();
                let width = [1, 2, 4, 8].get(random.below(4)).copied().unwrap_or(8);
                set(input, at, number.get(..width).unwrap_or_default());
            }
            6 => {
                let number = random.number().to_be_bytes();
                set(
                    input,
                    at,
                    number
                        .get(number.len() - [1, 2, 4, 8].get(random.below(4)).copied().unwrap_or(8)..)
                        .unwrap_or_default(),
                );
            }
            // A length or a number as protobuf has it.
            7 => insert(input, at, &varint(random.number())),
            8 => match random.pick(&self.words) {
                Some(word) => insert(input, at, word),
                None => flip(input, at, 0x80),
            },
            9 => {
                let other = random.pick(pool).map_or(&[][..], Vec::as_slice);
                let from = random.below(other.len() + 1);
                let piece = other.get(from..other.len().min(from + 1 + random.below(256))).unwrap_or_default();
                insert(input, at, piece);
            }
            _ => input.truncate(at),
        }
    }
}

/// What tells answers apart: their words, without the numbers, and not without end.
fn normal(answer: &str) -> String {
    let mut text = String::new();
    for character in answer.chars().take(160) {
        match character.is_ascii_digit() {
            true if text.ends_with('#') => {}
            true => text.push('#'),
            false => text.push(character),
        }
    }
    text
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

fn flip(input: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= bits;
    }
}

fn set(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (place, byte) in input.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// A number near an edge of something.
    fn number(&mut self) -> u64 {
        let edge = 1_u64.checked_shl(self.below(65) as u32).unwrap_or(0);
        edge.wrapping_add(self.below(3) as u64).wrapping_sub(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    fn pick_mut<'a, T>(&mut self, from: &'a mut [T]) -> Option<&'a mut T> {
        let at = self.below(from.len());
        from.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_a_few_words_is_found() {
        let begun = catch_unwind(|| {
            Fuzz::new(env!("CARGO_MANIFEST_DIR"), "example").words(&["open", "sesame"]).run(|input| {
                if !input.starts_with(b"open") {
                    return "shut";
                }
                assert!(!input.ends_with(b"sesame"), "found");
                "open"
            });
        });
        let text = begun.expect_err("it is found");
        assert!(text.downcast_ref::<String>().is_some_and(|t| t.starts_with("example panicked on ")), "{text:?}");
    }

    #[test]
    fn answers_are_told_apart_by_their_words() {
        assert_eq!(normal("at byte 17 of 4"), normal("at byte 3 of 99"));
        assert_ne!(normal("too short"), normal("too long"));
    }
}
