//! Container logs as CRI runtimes write them: reading, tailing, following over rotation.
//!
//! A line is `<time> <stdout|stderr> <F|P> <text>`; `P` is a part of a line that goes on in the next
//! one. What is asked and how lines are shown is pure; `Reader` has the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// How much is read at once, and the largest chunk handed out, in bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// The longest line that is looked at; the runtime cuts far earlier.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What is asked of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Lines from this time on.
    pub since: Option<Timestamp>,
    /// Only so many lines from the end (before following).
    pub tail_lines: Option<u64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// Each line with its time.
    pub timestamps: bool,
}

/// Turns lines of the file into what is shown.
#[derive(Debug)]
struct Show {
    ask: Ask,
    left: Option<u64>,
    /// The next text begins a line.
    fresh: bool,
}

impl Show {
    fn new(ask: Ask) -> Self {
        Self { left: ask.limit_bytes, ask, fresh: true }
    }

    /// Whether everything asked for has been shown.
    fn done(&self) -> bool {
        self.left == Some(0)
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some((time, partial, text)) = parse(line) else { return };
        if let Some(since) = self.ask.since
            && str_time(time).is_none_or(|t| t < since)
        {
            return;
        }
        let mut shown = Vec::with_capacity(time.len() + text.len() + 2);
        if self.ask.timestamps && self.fresh {
            shown.extend_from_slice(time);
            shown.push(b' ');
        }
        shown.extend_from_slice(text);
        if !partial {
            shown.push(b'\n');
        }
        self.fresh = !partial;
        if let Some(left) = &mut self.left {
            shown.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= shown.len() as u64;
        }
        out.extend_from_slice(&shown);
    }
}

/// Time, whether it is a part, and text of a line; none where it is not of that form.
fn parse(line: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |b| *b == b' ');
    let (time, _stream, tags) = (fields.next()?, fields.next()?, fields.next()?);
    let text = fields.next().unwrap_or_default();
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some((time, partial, text))
}

fn str_time(time: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(time).ok()?.parse().ok()
}

/// A log being read. Reads block: use it off the async threads.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    inode: u64,
    /// A line of which the end has not been written yet.
    begun: Vec<u8>,
    show: Show,
}

impl Reader {
    /// Opens the log at `path`, at the place where what is asked for begins.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be read.
    pub fn open(path: &Path, ask: Ask) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let inode = file.metadata()?.ino();
        if let Some(lines) = ask.tail_lines {
            let at = tail_offset(&mut file, lines)?;
            file.seek(SeekFrom::Start(at))?;
        }
        let (path, file) = (path.to_owned(), BufReader::with_capacity(CHUNK_BYTES, file));
        Ok(Self { path, file, inode, begun: Vec::new(), show: Show::new(ask) })
    }

    /// The next piece of what is asked for; empty at the present end of the log.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn piece(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < CHUNK_BYTES && !self.show.done() {
            let n = (&mut self.file).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.begun)?;
            if self.begun.last() == Some(&b'\n') || self.begun.len() as u64 >= LINE_BYTES_MAX {
                let line = std::mem::take(&mut self.begun);
                self.show.line(&line, &mut out);
            } else if n == 0 && !self.turn_over()? {
                break;
            }
        }
        Ok(out)
    }

    /// Whether the limit asked for has been reached.
    #[must_use]
    pub fn done(&self) -> bool {
        self.show.done()
    }

    /// At the end of the file: goes on with the new one if it was moved away, or with its start if
    /// it was cut.
    fn turn_over(&mut self) -> io::Result<bool> {
        let present = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if present.ino() != self.inode {
            let file = File::open(&self.path)?;
            self.inode = file.metadata()?.ino();
            self.file = BufReader::with_capacity(CHUNK_BYTES, file);
        } else if present.len() < self.file.stream_position()? {
            self.file.seek(SeekFrom::Start(0))?;
        } else {
            return Ok(false);
        }
        self.begun.clear();
        Ok(true)
    }
}

/// Where the last `lines` lines of a file begin, found from its end.
fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let (mut at, mut found) = (end, 0);
    let mut block = vec![0; CHUNK_BYTES];
    while at > 0 {
        let start = at.saturating_sub(CHUNK_BYTES as u64);
        let piece = &mut block[..usize::try_from(at - start).unwrap_or(CHUNK_BYTES)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        for (i, byte) in piece.iter().enumerate().rev() {
            let place = start + i as u64;
            // The newline that ends the file ends its last line; it begins none.
            if *byte == b'\n' && place + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(place + 1);
                }
            }
        }
        at = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn stamp(second: u32) -> String {
        format!("2024-01-01T00:00:{second:02}.000000000Z")
    }

    fn log(lines: &[(u32, &str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, lines);
        (dir, path)
    }

    fn append(path: &Path, lines: &[(u32, &str, &str)]) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        for (second, tag, text) in lines {
            writeln!(file, "{} stdout {tag} {text}", stamp(*second)).unwrap();
        }
    }

    fn read(path: &Path, ask: Ask) -> String {
        let mut reader = Reader::open(path, ask).unwrap();
        String::from_utf8(reader.piece().unwrap()).unwrap()
    }

    const LINES: [(u32, &str, &str); 4] =
        [(1, "F", "one"), (2, "P", "tw"), (3, "F", "o"), (4, "F", "three and more")];

    #[test]
    fn parts_are_joined_and_times_stand_at_line_starts() {
        let (_dir, path) = log(&LINES);
        assert_eq!(read(&path, Ask::default()), "one\ntwo\nthree and more\n");
        let shown = read(&path, Ask { timestamps: true, ..Ask::default() });
        assert_eq!(
            shown,
            format!("{} one\n{} two\n{} three and more\n", stamp(1), stamp(2), stamp(4))
        );
    }

    #[test]
    fn since_tail_and_limit_choose() {
        let (_dir, path) = log(&LINES);
        let since = str_time(stamp(4).as_bytes());
        assert_eq!(read(&path, Ask { since, ..Ask::default() }), "three and more\n");
        let tail = |n| read(&path, Ask { tail_lines: Some(n), ..Ask::default() });
        assert_eq!((tail(0).as_str(), tail(1).as_str()), ("", "three and more\n"));
        assert_eq!(tail(2), "o\nthree and more\n");
        assert_eq!(tail(99), "one\ntwo\nthree and more\n");
        let mut reader =
            Reader::open(&path, Ask { limit_bytes: Some(6), ..Ask::default() }).unwrap();
        assert_eq!((reader.piece().unwrap(), reader.done()), (b"one\ntw".to_vec(), true));
    }

    #[test]
    fn tailing_reads_over_block_borders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let long = "x".repeat(CHUNK_BYTES - 7);
        append(&path, &[(1, "F", "first"), (2, "F", &long), (3, "F", "last")]);
        assert_eq!(read(&path, Ask { tail_lines: Some(1), ..Ask::default() }), "last\n");
        let shown = read(&path, Ask { tail_lines: Some(2), ..Ask::default() });
        assert_eq!(shown.len(), long.len() + "\nlast\n".len());
    }

    #[test]
    fn following_goes_on_over_unfinished_lines_and_rotation() {
        let (dir, path) = log(&LINES[..1]);
        let mut reader = Reader::open(&path, Ask::default()).unwrap();
        assert_eq!(reader.piece().unwrap(), b"one\n");
        assert!(reader.piece().unwrap().is_empty());
        let mut file = File::options().append(true).open(&path).unwrap();
        write!(file, "{} stdout F ha", stamp(5)).unwrap();
        assert!(reader.piece().unwrap().is_empty(), "the line has no end yet");
        writeln!(file, "lf").unwrap();
        assert_eq!(reader.piece().unwrap(), b"half\n");
        std::fs::rename(&path, dir.path().join("0.log.old")).unwrap();
        assert!(reader.piece().unwrap().is_empty());
        append(&path, &[(6, "F", "new")]);
        assert_eq!(reader.piece().unwrap(), b"new\n");
    }

    #[test]
    fn what_is_no_log_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "nonsense\n\n\u{0} \n").unwrap();
        assert_eq!(read(&path, Ask::default()), "");
    }
}
