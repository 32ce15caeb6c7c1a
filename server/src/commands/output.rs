//! What is printed: answers, refusals, and etcdutl's tables and numbers of bytes for people. `println!` panics where nobody reads.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

/// Prints an answer. Who reads the first lines only closes the pipe, and has got what was asked for; a full disk is a failure.
pub fn answer(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => refuse(&format!("Error: cannot print the answer: {e}"), 1),
        _ => ExitCode::SUCCESS,
    }
}

/// Says on stderr why nothing was done, if anybody reads there. The code is what tools go by.
pub fn refuse(text: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}

/// A table of one row in etcdutl's frame: heads in the middle, values to the right.
pub fn table(columns: &[(&str, String)]) -> String {
    let widths: Vec<usize> = columns.iter().map(|(head, value)| head.len().max(value.chars().count())).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}", parts.join(middle))
    };
    let row = |cells: Vec<String>| format!("│ {} │", cells.join(" │ "));
    let heads = columns.iter().zip(&widths).map(|((head, _), width)| format!("{head:^width$}"));
    let values = columns.iter().zip(&widths).map(|((_, value), width)| format!("{value:>width$}"));
    [rule("┌", "┬", "┐"), row(heads.collect()), rule("├", "┼", "┤"), row(values.collect()), rule("└", "┴", "┘")]
        .join("\n")
}

/// Bytes in powers of a thousand, two digits at most, as etcdutl shows them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 10 {
        return format!("{count} B");
    }
    let power = count.ilog10() / 3;
    let value = (count as f64 / 1000f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS.get(power as usize).copied().unwrap_or("EB");
    match value < 10.0 {
        true => format!("{value:.1} {unit}"),
        false => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_etcdutl_shows_them() {
        let cases = [(0, "0 B"), (9, "9 B"), (999, "999 B"), (1000, "1.0 kB"), (24576, "25 kB"), (9949, "9.9 kB")];
        let large = [(20_480, "20 kB"), (1 << 20, "1.0 MB"), (1 << 30, "1.1 GB"), (u64::MAX, "18 EB")];
        for (count, text) in cases.into_iter().chain(large) {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_table_is_framed_as_etcdutls() {
        let columns = [("HASH", "780f8333".to_owned()), ("REVISION", "9".to_owned())];
        assert_eq!(
            table(&columns),
            "┌──────────┬──────────┐\n\
             │   HASH   │ REVISION │\n\
             ├──────────┼──────────┤\n\
             │ 780f8333 │        9 │\n\
             └──────────┴──────────┘"
        );
    }
}
