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
use super::{Beside, Measurer, Outcome, Point, Stage, Target, sound};
use crate::roofline::Roofline;

/// How long a worker may take to open its device: drivers of many devices take seconds.
const OPENING: Duration = Duration::from_secs(120);

/// How long making a target's inputs and the reference's answers may take: minutes, for the largest that are compared whole.
const POSING: Duration = Duration::from_secs(1200);

/// How long measuring the roofline may take.
const ROOFLINE: Duration = Duration::from_secs(120);

/// How often a silent worker is looked at: one that has died may have left its output to a compiler that it had started.
const LOOK: Duration = Duration::from_millis(50);

/// How long a worker that was killed is waited for. One that its driver holds in the kernel may never end.
const ENDING: Duration = Duration::from_secs(2);

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
    posing: Duration,
    running: Option<Running>,
    /// Workers that were started.
    pub started: usize,
}

struct Running {
    child: Child,
    /// What it has made ready: target and stage.
    posed: Vec<(String, Posed)>,
    input: ChildStdin,
    answers: Receiver<Answer>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    /// Closed when there are no more words.
    silence: Receiver<()>,
    /// Whether its status was taken.
    reaped: bool,
}

/// What a stage needs besides the point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Posed {
    Checks,
    Cases,
    Inputs,
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
            posing: POSING,
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

    /// Has the worker make ready what a stage of a target needs; what keeps it from that, if anything does.
    fn pose(&mut self, target: &Target, stage: Stage) -> Result<Option<String>> {
        let name = target.name();
        let what = match stage {
            Stage::Search => Posed::Checks,
            Stage::Proof => Posed::Cases,
            _ => Posed::Inputs,
        };
        // A worker may have died since it was last asked, by nothing that is this point's.
        if let Some(gone) = self.running.take_if(Running::has_ended) {
            gone.end();
        }
        let ready =
            |posed: &(String, Posed)| posed.0 == name && (posed.1 == what || what == Posed::Inputs);
        if self
            .running
            .as_ref()
            .is_some_and(|r| r.posed.iter().any(ready))
        {
            return Ok(None);
        }
        let question = Question::Pose {
            target: Box::new(target.clone()),
            stage,
        };
        let mut heard = self.ask(&question, self.posing)?;
        if matches!(heard, Heard::Died(_) | Heard::Answer(Answer::Lost(_))) {
            heard = self.ask(&question, self.posing)?;
        }
        let why = match heard {
            Heard::Answer(Answer::Posed) => {
                if let Some(running) = &mut self.running {
                    running.posed.retain(|(posed, _)| *posed == name);
                    running.posed.push((name, what));
                }
                return Ok(None);
            }
            Heard::Answer(Answer::Outcome(Outcome::Refused(error)) | Answer::Lost(error)) => error,
            Heard::Answer(other) => format!("{other:?}"),
            Heard::Died(said) => said,
            Heard::TimedOut => format!("no answer within {} s", self.posing.as_secs_f64()),
        };
        Ok(Some(format!(
            "inputs and reference could not be made: {why}"
        )))
    }

    /// Ends a worker that answers what it was not asked: its next answer would be taken for another's.
    fn distrust(&mut self, why: String) -> Outcome {
        if let Some(running) = self.running.take() {
            running.end();
        }
        Outcome::Crashed(format!("the worker's answer cannot be: {why}"))
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
        let there = match stage {
            Stage::Elsewhere { place, .. } => target.elsewhere()?.into_iter().nth(place),
            _ => Some(target.clone()),
        };
        let Some(target) = &there else {
            return Ok(Outcome::Refused("an op whose sizes are not known".into()));
        };
        if let Some(why) = self.pose(target, stage)? {
            return Ok(Outcome::Refused(why));
        }
        let question = Question::Point {
            target: Box::new(target.clone()),
            point: point.clone(),
            stage,
            beside: beside.cloned(),
        };
        Ok(match self.ask(&question, self.limit)? {
            Heard::Answer(Answer::Outcome(outcome)) => match sound::answer(&outcome, stage) {
                Ok(()) => outcome,
                Err(why) => self.distrust(why),
            },
            Heard::Answer(Answer::Lost(error)) => Outcome::Crashed(error),
            Heard::Answer(Answer::Failed(error)) => Outcome::Refused(error),
            Heard::Answer(other) => self.distrust(format!("{other:?}")),
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
        let mut command = Command::new(&launcher.program);
        command
            .args(&launcher.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own: the compilers that drivers start end with the worker. Ctrl-C reaches it by the end of its input.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
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
        let (speaking, silence) = mpsc::channel();
        std::thread::spawn(move || {
            let _speaking: mpsc::Sender<()> = speaking;
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
            posed: Vec::new(),
            input,
            answers,
            last_words,
            silence,
            reaped: false,
        })
    }

    fn hear(&mut self, limit: Duration) -> Heard {
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            match self.answers.recv_timeout(left.min(LOOK)) {
                Ok(answer) => return Heard::Answer(answer),
                Err(RecvTimeoutError::Disconnected) => return self.died(),
                Err(RecvTimeoutError::Timeout) if self.has_ended() => {
                    // Its last answer may be on its way.
                    let last = self.answers.recv_timeout(LOOK);
                    return last.map_or_else(|_| self.died(), Heard::Answer);
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Heard::TimedOut,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// How it ended, and its last words.
    fn died(&mut self) -> Heard {
        let begin = Instant::now();
        while !self.has_ended() && begin.elapsed() < ENDING {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        let how = self.wait(ENDING);
        let how = how.map_or("ended".into(), |status| status.to_string());
        let _ = self.silence.recv_timeout(ENDING);
        let words = self
            .last_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Heard::Died([&[how.as_str()], &words[..]].concat().join("; "))
    }

    /// Whether the process is no more. Its status stays to be taken, so that its group's number is nobody else's yet.
    fn has_ended(&mut self) -> bool {
        #[cfg(unix)]
        {
            use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let status = waitid(WaitId::Pid(Pid::from_child(&self.child)), look);
            status.map_or(true, |status| status.is_some())
        }
        #[cfg(not(unix))]
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Kills it with all that it has started, unless its status was taken already.
    fn kill(&mut self) {
        #[cfg(unix)]
        if !self.reaped {
            use rustix::process::{Pid, Signal, kill_process_group};
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.kill();
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.reaped = true;
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Ends it, if it has not ended, and takes its status so that no zombie stays.
    fn end(mut self) {
        self.kill();
        if self.wait(ENDING).is_none() {
            std::thread::spawn(move || self.child.wait());
        }
    }
}
