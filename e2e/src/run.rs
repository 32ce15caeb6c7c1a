//! Running a program to its end: its output as a value, or an error that names the command and shows its last lines.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::progress::say;

/// How many lines of a failed command or of a log an error shows: a Go panic's reason or a component's complaint fits,
/// and it is still one screen.
const TAIL_LINES: usize = 20;

/// How often a long command says that it is still running.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What a command that succeeded wrote.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, with invalid UTF-8 replaced.
    pub stderr: String,
}

/// Runs `command` to its end. An exit status other than 0 is an error that names the command and holds its last lines.
pub fn output(command: &mut Command) -> Result<Output> {
    output_with_input(command, None)
}

/// Like [`output`], with `input` on the command's standard input. The input must be small enough that the command reads it
/// before it fills its own output pipe (a manifest is).
pub fn output_with_input(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let shown = show(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("starting `{shown}`"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        // A command that ends early closes the pipe; its exit status tells more than this error would.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for `{shown}`"))?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
    if !output.status.success() {
        let said = if stderr.trim().is_empty() { &stdout } else { &stderr };
        bail!("`{shown}` failed ({}): {}", output.status, tail_of(said).trim());
    }
    Ok(Output { stdout, stderr })
}

/// Runs a command that may take minutes: its output goes to `log`, and every 15 seconds a line says that `what` goes on and
/// what the log ends with.
pub fn logged(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    let shown = show(command);
    let file =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    let began = Instant::now();
    let mut said = began;
    loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!("{what}: `{shown}` failed ({status}); the end of {}:\n{}", log.display(), tail(log));
        }
        if said.elapsed() >= HEARTBEAT {
            let at = tail(log).lines().last().map(|line| format!(", {}", line.trim())).unwrap_or_default();
            say(format!("{what}: {} s{at}", began.elapsed().as_secs()));
            said = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The last lines of a file, or a remark that it cannot be read. For error messages.
pub fn tail(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(bytes) => tail_of(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("({}: {error})", path.display()),
    }
}

fn tail_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_names_itself_and_what_it_said() {
        let error = output(Command::new("ls").arg("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("ls /no/such/folder"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(output_with_input(&mut Command::new("cat"), Some("a manifest")).unwrap().stdout, "a manifest");
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let text: String = (0..100).map(|line| format!("{line}\n")).collect();
        let tail = tail_of(&text);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("99"));
    }
}
