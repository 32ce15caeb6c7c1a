//! What the operating system says of this process, under the names of Prometheus' own process collector.

use std::fs;

/// Figures of this process. One that cannot be read is left as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    pub cpu_seconds: Option<f64>,
    pub open_fds: Option<i64>,
    pub max_fds: Option<i64>,
    pub resident_bytes: Option<i64>,
    pub virtual_bytes: Option<i64>,
    pub virtual_max_bytes: Option<f64>,
    /// Unix time in seconds.
    pub start_seconds: Option<f64>,
    pub network_received_bytes: Option<u64>,
    pub network_sent_bytes: Option<u64>,
}

impl Process {
    /// Reads `/proc`.
    pub fn now() -> Process {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let page = rustix::param::page_size() as i64;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let mut process =
            parse(&text("/proc/self/stat"), &text("/proc/stat"), &text("/proc/self/net/netstat"), page, ticks);
        // The folder that is being read is open itself.
        process.open_fds = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as i64 - 1);
        let limit = |resource| rustix::process::getrlimit(resource).current;
        process.max_fds = limit(rustix::process::Resource::Nofile).and_then(|n| i64::try_from(n).ok());
        process.virtual_max_bytes = Some(limit(rustix::process::Resource::As).map_or(u64::MAX as f64, |n| n as f64));
        process
    }
}

/// The fields of `/proc/self/stat` behind the name, the machine's start from `/proc/stat`, and traffic.
fn parse(stat: &str, machine: &str, netstat: &str, page: i64, ticks: f64) -> Process {
    // The name is in brackets and may hold anything; numbering begins behind it with field 3.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let number = |field: usize| fields.get(field - 3).and_then(|v| v.parse::<f64>().ok());
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let octets = |name: &str| {
        let mut ip = netstat.lines().filter_map(|line| line.strip_prefix("IpExt: "));
        let (names, values) = (ip.next()?, ip.next()?);
        let at = names.split_whitespace().position(|n| n == name)?;
        values.split_whitespace().nth(at)?.parse().ok()
    };
    Process {
        cpu_seconds: number(14).zip(number(15)).map(|(user, system)| (user + system) / ticks),
        resident_bytes: number(24).map(|pages| pages as i64 * page),
        virtual_bytes: number(23).map(|bytes| bytes as i64),
        start_seconds: boot.zip(number(22)).map(|(boot, started)| boot + started / ticks),
        network_received_bytes: octets("InOctets"),
        network_sent_bytes: octets("OutOctets"),
        ..Process::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_behind_a_name_with_brackets() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 9 0 1000 4096000 25 18446744073709551615 1";
        let netstat = "TcpExt: A\nTcpExt: 1\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 77 88\n";
        let process = parse(stat, "cpu 1\nbtime 500\n", netstat, 4096, 100.0);
        let expected = Process {
            cpu_seconds: Some(3.0),
            resident_bytes: Some(25 * 4096),
            virtual_bytes: Some(4_096_000),
            start_seconds: Some(510.0),
            network_received_bytes: Some(77),
            network_sent_bytes: Some(88),
            ..Process::default()
        };
        assert_eq!(process, expected);
        assert_eq!(parse("", "", "", 4096, 100.0), Process::default());
    }

    #[test]
    fn this_process_has_figures() {
        let now = Process::now();
        assert!(now.resident_bytes.is_some_and(|n| n > 0) && now.open_fds.is_some_and(|n| n > 0), "{now:?}");
        assert!(now.cpu_seconds.is_some() && now.start_seconds.is_some() && now.max_fds.is_some(), "{now:?}");
    }
}
