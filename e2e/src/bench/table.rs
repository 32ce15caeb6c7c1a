//! The table of ratios. A ratio says how much better ours is: above 1 it is faster, or costs less.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;

use super::load::{Figures, Row};
use super::median;

/// All lines, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Table {
    /// The lines.
    pub lines: Vec<Line>,
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// How many members each server had.
    pub members: u8,
    /// What was measured.
    pub name: String,
    /// Of both figures.
    pub unit: &'static str,
    /// etcd's median.
    pub etcd: f64,
    /// Our median.
    pub ferretcd: f64,
    /// How much better ours is.
    pub ratio: f64,
    /// CPU time per operation, etcd's divided by ours, where operations are counted.
    pub cpu_ratio: Option<f64>,
    /// The lowest and the highest ratio of a round.
    pub spread: [f64; 2],
}

impl Table {
    /// Adds a row by its rounds, and says what it is.
    ///
    /// # Errors
    /// There is no round.
    pub fn add(&mut self, members: u8, row: &Row, etcd: &[Figures], ours: &[Figures]) -> Result<String> {
        let rate = |figures: &[Figures]| median(figures.iter().map(|figures| figures.rate)).context("no round");
        let cpu = |figures: &[Figures]| median(figures.iter().map(|figures| figures.cpu)).context("no round");
        let late = |figures: &[Figures], at: usize| -> Vec<f64> {
            figures.iter().filter_map(|figures| figures.latencies.get(at)).map(|seconds| seconds * 1e3).collect()
        };
        let cpu_ratio = Some(cpu(etcd)? / cpu(ours)?);
        let said = if row.name == "watch-latency" {
            // How many events come is set; how late they come is what counts.
            self.cost(members, row.name, "ms (median)", &late(etcd, 0), &late(ours, 0))?
        } else {
            let rounds = etcd.iter().zip(ours).map(|(theirs, own)| own.rate / theirs.rate);
            let ratio = rate(ours)? / rate(etcd)?;
            self.push(members, row.name, "per second", [rate(etcd)?, rate(ours)?], ratio, rounds)
        };
        if let Some(line) = self.lines.last_mut() {
            line.cpu_ratio = cpu_ratio;
        }
        let worst = format!("{}, 99th of 100", row.name);
        self.cost(members, &worst, "ms", &late(etcd, 1), &late(ours, 1))?;
        Ok(said)
    }

    /// Adds a row of something that should be small, by its rounds, and says what it is.
    ///
    /// # Errors
    /// There is no round.
    pub fn cost(&mut self, members: u8, name: &str, unit: &'static str, etcd: &[f64], ours: &[f64]) -> Result<String> {
        let middle = |figures: &[f64]| median(figures.iter().copied()).context("no round");
        let rounds = etcd.iter().zip(ours).map(|(theirs, own)| theirs / own);
        let figures = [middle(etcd)?, middle(ours)?];
        Ok(self.push(members, name, unit, figures, figures[0] / figures[1], rounds))
    }

    fn push(
        &mut self,
        members: u8,
        name: &str,
        unit: &'static str,
        [etcd, ferretcd]: [f64; 2],
        ratio: f64,
        rounds: impl Iterator<Item = f64>,
    ) -> String {
        let [low, high] = rounds.fold([f64::INFINITY, 0.0], |[low, high], one| [one.min(low), one.max(high)]);
        let line =
            Line { members, name: name.to_owned(), unit, etcd, ferretcd, ratio, cpu_ratio: None, spread: [low, high] };
        let said = line.to_string();
        self.lines.push(line);
        said
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: etcd {:.2}, ferretcd {:.2} {}, ratio {:.2}",
            self.name, self.etcd, self.ferretcd, self.unit, self.ratio
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| members | what | etcd | ferretcd | unit | better by | rounds | CPU better by |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for line in &self.lines {
            let [low, high] = line.spread;
            let cpu = line.cpu_ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let digits = if line.etcd.max(line.ferretcd) < 100.0 { 2 } else { 0 };
            writeln!(
                f,
                "| {} | {} | {:.digits$} | {:.digits$} | {} | {:.2} | {low:.2} to {high:.2} | {cpu} |",
                line.members, line.name, line.etcd, line.ferretcd, line.unit, line.ratio
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_is_above_one_for_rates_and_for_costs() {
        let row = super::super::load::rows().remove(0);
        let run = |rate: f64, late: f64, cpu: f64| Figures { rate, latencies: [late, late], cpu };
        let mut table = Table::default();
        table.add(1, &row, &[run(100.0, 0.010, 2.0), run(120.0, 0.010, 2.0)], &[run(200.0, 0.005, 1.0); 2]).unwrap();
        let text = table.to_string();
        assert!(text.contains("| 1 | put, 1 client | 110 | 200 | per second | 1.82 | 1.67 to 2.00 | 2.00 |"), "{text}");
        assert!(
            text.contains("| 1 | put, 1 client, 99th of 100 | 10.00 | 5.00 | ms | 2.00 | 2.00 to 2.00 |  |"),
            "{text}"
        );
    }
}
