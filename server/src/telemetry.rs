//! Logs on standard error, as etcd writes them, and what a panic does.

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

/// Sets the log up. An unknown level or format is an error.
pub fn init(level: &str, format: &str) -> Result<(), String> {
    let filter = match level {
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        "error" | "dpanic" | "panic" | "fatal" => LevelFilter::ERROR,
        other => return Err(format!("invalid value {other:?} for --log-level: use debug, info, warn or error")),
    };
    // openraft tells its whole life at info; what matters of it is logged by our own crates.
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(filter)
        .with_target("openraft", filter.min(LevelFilter::ERROR))
        .with_target("h2", filter.min(LevelFilter::WARN))
        .with_target("hyper", filter.min(LevelFilter::WARN))
        .with_target("sled", filter.min(LevelFilter::WARN));
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        "json" => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init(),
        "console" => registry.with(fmt::layer().with_writer(std::io::stderr)).init(),
        other => return Err(format!("invalid value {other:?} for --log-format: use json or console")),
    }
    Ok(())
}

/// A broken invariant stops the member instead of leaving it half alive: the log has everything that was acknowledged.
/// The engine's own panics while it opens a damaged file are caught there and lead to a rebuild.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if std::thread::current().name() != Some(ferretcd_node::boot::ENGINE_OPENER) {
            std::process::abort();
        }
    }));
}
