//! Cases as text: what is done to a group of members above the line, what they say below it.
//!
//! Nothing happens by itself: a member's clock goes on when it is told to, and messages arrive at once, unless the member is
//! cut off. `BLESS=1` writes what was said.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::*;

/// Ticks within which an election must be over, whatever was drawn.
const ELECTION: usize = 3 * ELECTION_TICKS;

struct Case {
    group: Group,
    cut: BTreeSet<u64>,
    /// By member: who it believes to lead, the term, what it said, and its seats.
    before: BTreeMap<u64, ((u64, u64), usize, String)>,
    tickets: u64,
    text: String,
}

impl Case {
    fn new(count: u64) -> Self {
        let group = Group::new(count);
        let mut case = Self {
            group,
            cut: BTreeSet::new(),
            before: BTreeMap::new(),
            tickets: 0,
            text: String::new(),
        };
        case.tell();
        case.text.clear();
        case
    }

    fn run(&mut self, words: &[&str]) {
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        let id = number(1);
        self.tickets += 1;
        match words[0] {
            "cut" => drop(self.cut.insert(id)),
            "join" => self.cut.clear(),
            "elect" => {
                for _ in 0..ELECTION {
                    if !self.group.all[&id].replica.node().leads() {
                        self.step(id, Input::Tick);
                    }
                }
            }
            "tick" => (0..number(2)).for_each(|_| self.step(id, Input::Tick)),
            "propose" => {
                let data = words[2].as_bytes().to_vec();
                self.step(id, Input::Propose(self.tickets, data));
            }
            "read" => self.step(id, Input::Read(self.tickets)),
            "change" => {
                let step = |pair: &[&str]| {
                    let id = pair[1].parse().unwrap();
                    match pair[0] {
                        "add" => What::Add(member(id, true)),
                        "promote" => What::Promote(id),
                        "remove" => What::Remove(id),
                        other => panic!("no step {other}"),
                    }
                };
                let change = Change::of(words[2..].chunks(2).map(step));
                self.step(id, Input::Change(self.tickets, change));
            }
            "start" => {
                let joining = open(self.group.dir.path(), id, &Members::default(), Mark::default());
                self.group.all.insert(id, one(joining));
                self.before.remove(&id);
            }
            "snapshot" => {
                let last = self.group.all[&id].said.last().map_or(FIRST, |last| last.mark);
                self.step(id, Input::Snapshot(last));
                self.step(id, Input::SnapshotSent(number(2), true));
            }
            other => panic!("no command {other}"),
        }
        self.tell();
    }

    fn step(&mut self, id: u64, input: Input) {
        self.group.step(id, input);
        loop {
            let cut = |id: &u64| self.cut.contains(id);
            // Who is cut off hears nobody, and what it sent before it was cut is lost as well.
            let from_cut = cut(&id);
            self.group.network.retain(|message| !cut(&message.to) && !from_cut);
            let Some(message) = self.group.network.pop_front() else { return };
            let Outgoing { to, bytes, snapshot } = message;
            let input = match snapshot {
                Some(mark) => {
                    let members = self.group.all[&id].replica.members().clone();
                    Input::Arrived(mark, members, bytes)
                }
                None => Input::Message(bytes),
            };
            self.group.step(to, input);
        }
    }

    /// Says what is new.
    fn tell(&mut self) {
        for (id, one) in &mut self.group.all {
            let node = one.replica.node();
            let lead = (node.leader(), node.term());
            let seats = seats(one.replica.members());
            let known = self.before.insert(*id, (lead, one.said.len(), seats.clone()));
            let (before, said, mut had) = known.unwrap_or_default();
            let text = &mut self.text;
            if lead != before && lead.0 > 0 {
                let what =
                    if lead.0 == *id { "leads".to_owned() } else { format!("follows {}", lead.0) };
                writeln!(text, "  {id} {what} in term {}", lead.1).unwrap();
            }
            for committed in one.said.iter().skip(said) {
                match &committed.what {
                    Said::Operation(data) => {
                        let data = String::from_utf8_lossy(data);
                        let whose = committed.ticket.map_or("", |_| ", and answers");
                        writeln!(text, "  {id} applies {data}{whose}").unwrap();
                    }
                    Said::Members(Ok(members)) => {
                        had = self::seats(members);
                        writeln!(text, "  {id} has {had}").unwrap();
                    }
                    _ => {}
                }
            }
            if seats != had {
                writeln!(text, "  {id} has {seats}").unwrap();
            }
            for _ in one.reads.drain(..) {
                writeln!(text, "  {id} answers a read").unwrap();
            }
            for (_, refusal) in one.lost.drain(..) {
                writeln!(text, "  {id} refuses: {refusal}").unwrap();
            }
        }
    }
}

fn seats(members: &Members) -> String {
    let Seats { voters, outgoing, .. } = members.seats();
    let listen = members.all.iter().filter(|member| member.is_learner).map(|member| member.id);
    let mut text = format!("voters {voters:?}");
    let others = [("and before", outgoing), ("learners", listen.collect())];
    for (what, ids) in others.into_iter().chain([("leaving", members.leaving.clone())]) {
        if !ids.is_empty() {
            write!(text, " {what} {ids:?}").unwrap();
        }
    }
    text
}

/// Runs a case and returns it with what was said.
fn said(text: &str) -> String {
    let (commands, _) = text.split_once("----\n").unwrap_or((text, ""));
    let mut case = None;
    let mut out = format!("{commands}----\n");
    for line in commands.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        writeln!(out, "{line}").unwrap();
        match (&mut case, words[0]) {
            (case, "members") => *case = Some(Case::new(words[1].parse().unwrap())),
            (Some(case), _) => {
                case.run(&words);
                out += &std::mem::take(&mut case.text);
            }
            (None, other) => panic!("{other} before members"),
        }
    }
    out
}

#[test]
fn cases_say_what_their_files_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/replica/cases");
    let mut files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let said = said(&text);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, &said).unwrap();
        } else {
            assert_eq!(text, said, "{}", file.display());
        }
    }
}
