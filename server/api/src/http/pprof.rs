//! `/debug/pprof/` (`--enable-pprof`): what Go programs tell profilers, as far as this one can without taking stacks from
//! inside (docs/decisions/0011): the time and the number of its threads, by name.

mod profile;
mod threads;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, Query, State},
    response::{IntoResponse, Redirect, Response},
    routing::any,
};
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_DISPOSITION, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};
use tokio::sync::Semaphore;

use self::{
    profile::{Kind, Profile},
    threads::Threads,
};
use super::{Parameters, gzip, text};

/// How long a CPU profile is if nothing else is asked for, as in Go.
const SECONDS: u64 = 30;

/// Longest CPU profile. Go has no bound; here one must end, so that there is room for another.
const SECONDS_MAX: u64 = 3600;

/// How often threads are looked at: one that lives for less than this is missed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the page lists.
const PAGES: [(&str, &str); 10] = [
    ("allocs", NONE),
    ("block", NONE),
    ("cmdline", "The command line of this process"),
    ("goroutine", "Threads by name and state; ?debug=1 is text"),
    ("heap", NONE),
    ("mutex", NONE),
    ("profile", "CPU time of each thread within ?seconds=30, in user and in kernel code"),
    ("symbol", "Names of addresses: none are needed here"),
    ("threadcreate", "Threads by name; ?debug=1 is text"),
    ("trace", NONE),
];

const NONE: &str = "Not in this server";

/// What is told instead of a profile that this server does not have.
const INSTEAD: &str = "this server has no such profile. Stacks: `perf record -g -p PID` or `gdb -p PID`; memory: \
                       `heaptrack` or `perf mem`, and process_resident_memory_bytes of /metrics; waiting: `offcputime` of \
                       bcc or `perf sched`; calls: --enable-distributed-tracing";

/// The routes.
pub fn router() -> Router {
    // As in Go, one CPU profile at a time.
    let one = Arc::new(Semaphore::new(1));
    Router::new()
        .route("/debug/pprof", any(|| async { Redirect::temporary("/debug/pprof/") }))
        .route("/debug/pprof/", any(|| async { index() }))
        .route("/debug/pprof/{name}", any(page))
        .with_state(one)
}

async fn page(State(one): State<Arc<Semaphore>>, Path(name): Path<String>, Query(query): Parameters) -> Response {
    let number = |name: &str| query.iter().find(|(n, _)| n == name).and_then(|(_, value)| value.parse::<u64>().ok());
    match name.as_str() {
        "cmdline" => {
            let words: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
            text(StatusCode::OK, words.join("\0"))
        }
        "symbol" => text(StatusCode::OK, "num_symbols: 0\n"),
        "profile" => match one.try_acquire() {
            Ok(_turn) => {
                let seconds = number("seconds").filter(|s| *s > 0).unwrap_or(SECONDS).min(SECONDS_MAX);
                let profile = cpu(Duration::from_secs(seconds)).await;
                file("profile", &profile)
            }
            Err(_) => trouble(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Could not enable CPU profiling: cpu profiling already in use",
            ),
        },
        "goroutine" | "threadcreate" => {
            let by_state = name == "goroutine";
            let threads = match now().await {
                Ok(threads) => threads,
                Err(why) => return trouble(StatusCode::INTERNAL_SERVER_ERROR, &why),
            };
            let counted = threads.counted(by_state);
            if number("debug").unwrap_or_default() > 0 {
                let total: i64 = counted.iter().map(|(_, n)| n).sum();
                let lines = counted.iter().map(|(stack, n)| format!("{n} @ {}\n", stack.join(" ")));
                return text(StatusCode::OK, format!("{name} profile: total {total}\n{}", lines.collect::<String>()));
            }
            let mut profile =
                Profile::new(Kind::Count(if by_state { "goroutine" } else { "threadcreate" }), Duration::ZERO);
            for (stack, n) in &counted {
                profile.add(stack, &[*n]);
            }
            file(&name, &profile)
        }
        "heap" | "allocs" | "block" | "mutex" | "trace" => trouble(StatusCode::NOT_IMPLEMENTED, INSTEAD),
        _ => trouble(StatusCode::NOT_FOUND, "Unknown profile"),
    }
}

/// The time that threads spend from now on. It ends early, and so does the call, when the client goes away.
async fn cpu(length: Duration) -> Profile {
    let mut spent = threads::Spent::default();
    let until = tokio::time::Instant::now() + length;
    loop {
        if let Ok(threads) = now().await {
            spent.look(&threads);
        }
        let at = tokio::time::Instant::now();
        if at >= until {
            break;
        }
        tokio::time::sleep_until(until.min(at + LOOK_EVERY)).await;
    }
    let mut profile = Profile::new(Kind::Cpu, length);
    for (stack, ticks) in spent.by_stack() {
        profile.add(&stack, &[ticks, ticks.saturating_mul(threads::tick_nanos())]);
    }
    profile
}

/// Reading them is a few system calls for each thread.
async fn now() -> Result<Threads, String> {
    tokio::task::spawn_blocking(Threads::now).await.map_err(|e| e.to_string())?
}

fn index() -> Response {
    let rows = PAGES.iter().map(|(name, what)| {
        let debug = if matches!(*name, "goroutine" | "threadcreate") { "?debug=1" } else { "" };
        format!("<tr><td><a href=\"{name}{debug}\">{name}</a></td><td>{what}</td></tr>\n")
    });
    let body = format!(
        "<html>\n<head><title>/debug/pprof/</title></head>\n<body>\n<p>Profiles of this process</p>\n<table>\n{}</table>\n\
         </body>\n</html>\n",
        rows.collect::<String>()
    );
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, body).into_response()
}

fn file(name: &str, profile: &Profile) -> Response {
    let bytes = match gzip::pack(&profile.encode()) {
        Ok(bytes) => bytes,
        Err(e) => return trouble(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    };
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    let mut response =
        ([(CONTENT_TYPE, "application/octet-stream"), (X_CONTENT_TYPE_OPTIONS, "nosniff")], bytes).into_response();
    if let Ok(disposition) = disposition {
        response.headers_mut().insert(CONTENT_DISPOSITION, disposition);
    }
    response
}

/// An error as Go's profiler tells it, which its tool shows to people.
fn trouble(status: StatusCode, why: &str) -> Response {
    let mut response = text(status, format!("{why}\n"));
    response.headers_mut().insert(HeaderName::from_static("x-go-pprof"), HeaderValue::from_static("1"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use std::io::Read;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (u16, String, Vec<u8>) {
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
        let content = parts.headers.get(CONTENT_TYPE).map(|c| c.to_str().unwrap().to_owned());
        (parts.status.as_u16(), content.unwrap_or_default(), body)
    }

    #[tokio::test]
    async fn each_page_has_its_profile_or_says_what_there_is_instead() {
        let router = router();
        let (status, content, body) = ask(&router, "/debug/pprof/").await;
        assert_eq!((status, content.as_str()), (200, "text/html; charset=utf-8"));
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains("href=\"profile\"") && body.contains("goroutine?debug=1"), "{body}");
        for name in ["heap", "allocs", "block", "mutex", "trace"] {
            let (status, _, body) = ask(&router, &format!("/debug/pprof/{name}")).await;
            assert!(status == 501 && body.starts_with(b"this server has no such profile"), "{name}");
        }
        assert_eq!(ask(&router, "/debug/pprof/x").await.0, 404);
        assert_eq!(ask(&router, "/debug/pprof").await.0, 307);
        let (_, content, words) = ask(&router, "/debug/pprof/cmdline").await;
        assert!(content.starts_with("text/plain") && !words.is_empty());
        let (_, _, told) = ask(&router, "/debug/pprof/threadcreate?debug=1").await;
        assert!(String::from_utf8(told).unwrap().starts_with("threadcreate profile: total "));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_profile_at_a_time_shows_the_thread_that_works() {
        let router = router();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = stop.clone();
        let busy = std::thread::Builder::new().name("busy-thread".to_owned()).spawn(move || {
            let mut sum = 0_u64;
            while !seen.load(std::sync::atomic::Ordering::Relaxed) {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        });
        let one = Arc::new(Semaphore::new(1));
        let none = one.clone().try_acquire_owned().unwrap();
        let refused = page(State(one.clone()), Path("profile".to_owned()), Query(Vec::new())).await;
        assert_eq!(refused.status().as_u16(), 500);
        drop(none);
        let (status, content, body) = ask(&router, "/debug/pprof/profile?seconds=1").await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.unwrap().join().unwrap();
        assert_eq!((status, content.as_str()), (200, "application/octet-stream"));
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut bytes).unwrap();
        let told = profile::decode(&bytes);
        let busy = told.iter().find(|(stack, _)| stack == &["user code", "busy-thread"]);
        assert!(busy.is_some_and(|(_, values)| values[1] > 0), "{told:?}");
    }
}
