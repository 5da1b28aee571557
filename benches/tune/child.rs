//! The tuner's side of a child process: a configuration that hangs or crashes costs itself and no other.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ropeway_core::{Error, ErrorKind, Result};

use super::worker::{Answer, Question};
use super::{Beside, Measurer, Outcome, Point, Stage, Target};
use crate::roofline::Roofline;

/// How long a worker may take to open its device: drivers of many devices take seconds.
const OPENING: Duration = Duration::from_secs(120);

/// How long measuring the roofline may take.
const ROOFLINE: Duration = Duration::from_secs(120);

/// Lines of a worker's standard error that are kept for the report.
const LAST_WORDS: usize = 3;

/// Workers that may end one after the other before any has opened the device.
const STARTS: usize = 3;

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Launcher {
    /// This program's own `tune-worker` on a device.
    ///
    /// # Errors
    /// `File` if the program's own path is not known.
    pub fn of_device(selector: &str) -> Result<Launcher> {
        Ok(Launcher {
            program: std::env::current_exe()?,
            args: ["tune-worker", "--device", selector].map(Into::into).into(),
        })
    }
}

/// Measures in a child process, which serves many points and is replaced when it dies.
pub struct Children {
    launcher: Launcher,
    limit: Duration,
    running: Option<Running>,
    /// Workers that were started.
    pub started: usize,
}

struct Running {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Answer>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

enum Heard {
    Answer(Answer),
    Died(String),
    TimedOut,
}

impl Children {
    /// With a limit of time for one point.
    pub fn new(launcher: Launcher, limit: Duration) -> Children {
        Children {
            launcher,
            limit,
            running: None,
            started: 0,
        }
    }

    /// The device's roofline.
    ///
    /// # Errors
    /// `Driver` if it cannot be measured.
    pub fn roofline(&mut self) -> Result<Roofline> {
        match self.ask(&Question::Roofline, ROOFLINE)? {
            Heard::Answer(Answer::Roofline(roofline)) => Ok(roofline),
            Heard::Answer(other) => Err(Error::new(ErrorKind::Driver, format!("{other:?}"))),
            Heard::Died(said) => Err(Error::new(ErrorKind::Driver, said)),
            Heard::TimedOut => Err(Error::new(ErrorKind::Driver, "no answer")),
        }
    }

    fn ask(&mut self, question: &Question, limit: Duration) -> Result<Heard> {
        let text = serde_json::to_string(question)
            .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        // A pipe that is closed shows at the wait.
        let _ = writeln!(running.input, "{text}").and_then(|()| running.input.flush());
        let heard = running.hear(limit);
        match heard {
            Heard::Answer(ref answer) if !matches!(answer, Answer::Lost(_)) => {
                self.running = Some(running);
            }
            _ => running.end(),
        }
        Ok(heard)
    }

    fn start(&mut self) -> Result<Running> {
        let mut why = String::new();
        for _ in 0..STARTS {
            self.started += 1;
            let mut running = Running::new(&self.launcher)?;
            match running.hear(OPENING) {
                Heard::Answer(Answer::Ready) => return Ok(running),
                Heard::Answer(Answer::Lost(error)) => why = error,
                Heard::Answer(other) => why = format!("{other:?}"),
                Heard::Died(said) => why = said,
                Heard::TimedOut => why = "the device does not open".into(),
            }
            running.end();
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("no worker could be started: {why}"),
        ))
    }
}

impl Measurer for Children {
    fn measure(
        &mut self,
        target: &Target,
        point: &Point,
        stage: Stage,
        beside: Option<&Beside>,
    ) -> Result<Outcome> {
        let question = Question::Point {
            target: Box::new(target.clone()),
            point: point.clone(),
            stage,
            beside: beside.cloned(),
        };
        Ok(match self.ask(&question, self.limit)? {
            Heard::Answer(Answer::Outcome(outcome)) => outcome,
            Heard::Answer(Answer::Lost(error)) => Outcome::Crashed(error),
            Heard::Answer(other) => Outcome::Refused(format!("{other:?}")),
            Heard::Died(said) => Outcome::Crashed(said),
            Heard::TimedOut => Outcome::TimedOut(self.limit.as_secs_f64()),
        })
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

/// What a pipe carries, line by line; a driver's messages need not be UTF-8.
fn lines(pipe: impl Read) -> impl Iterator<Item = String> {
    let lines = BufReader::new(pipe)
        .split(b'\n')
        .map_while(std::result::Result::ok);
    lines.map(|line| String::from_utf8_lossy(&line).into_owned())
}

impl Running {
    fn new(launcher: &Launcher) -> Result<Running> {
        let mut child = Command::new(&launcher.program)
            .args(&launcher.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::from(error).within(launcher.program.display()))?;
        let missing = || Error::new(ErrorKind::File, "a child without pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        let (send, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines(output) {
                // Whatever else is printed there is a driver's.
                if let Ok(answer) = serde_json::from_str(&line)
                    && send.send(answer).is_err()
                {
                    return;
                }
            }
        });
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&last_words);
        std::thread::spawn(move || {
            for line in lines(errors) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line.chars().take(400).collect());
                if kept.len() > LAST_WORDS {
                    kept.pop_front();
                }
            }
        });
        Ok(Running {
            child,
            input,
            answers,
            last_words,
        })
    }

    fn hear(&mut self, limit: Duration) -> Heard {
        match self.answers.recv_timeout(limit) {
            Ok(answer) => Heard::Answer(answer),
            Err(RecvTimeoutError::Timeout) => Heard::TimedOut,
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.wait(Duration::from_secs(2));
                let words = self
                    .last_words
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let how = status.map_or("ended".into(), |status| status.to_string());
                Heard::Died([&[how.as_str()], &words[..]].concat().join("; "))
            }
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Ends it, if it has not ended, and takes its status so that no zombie stays.
    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
