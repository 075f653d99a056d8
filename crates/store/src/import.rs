//! `ironclad-store import`: a new store from the data of a running etcd, read through its API only.
//!
//! All keys are read as they are at one revision, which is that of the first answer. Leases and users have no history:
//! they are read after the keys, so that the lease of every key is known or is known to have ended.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use daemon::Channel;
use daemon::tls::{ClientTls, TlsFiles};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};
use wire::etcdserverpb::auth_client::AuthClient;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest,
    AuthRoleListRequest, AuthUserAddRequest, AuthUserGetRequest, AuthUserGrantRoleRequest,
    AuthUserListRequest, AuthenticateRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest,
    RangeRequest, RangeResponse, StatusRequest,
};
use wire::mvccpb::event::EventType;
use wire::mvccpb::{Event, KeyValue};

use crate::applied::Applied;
use crate::auth::{Auth, Change, ROOT, What};
use crate::bootstrap;
use crate::mvcc::lease::TTL_S_MIN;
use crate::mvcc::record::Summary;
use crate::mvcc::{Mvcc, Revision};
use crate::password::{self, SALT_BYTES};
use crate::snapshot::Mark;
use crate::tools;

/// How far revisions are raised unless told otherwise: just past the one that was read, so that whoever has seen all up
/// to there goes on without a gap, and whoever has not is told that its revision is compacted.
const RAISE: i64 = 1;
/// What a page of keys should hold, and may at most.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_BYTES_MAX: usize = 256 << 20;
/// Keys of the first page, and of the largest.
const FIRST_PAGE_KEYS: i64 = 64;
const PAGE_KEYS_MAX: i64 = 10_000;
/// Keys between two lines about how far it is.
const KEYS_PER_LINE: usize = 50_000;
/// Leases that are asked for at the same time.
const LEASES_AT_ONCE: usize = 32;
/// etcd's words where nobody is asked who he is.
const AUTH_NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
const HELP: &str = "\
usage: ironclad-store import --from URL[,URL] [--cacert FILE] [--cert FILE --key FILE]
                             [--user NAME --password-file FILE] [--without-passwords] [--raise N] [SETTINGS]

Makes a new store in data_dir from the keys, leases, users and roles of a running etcd. SETTINGS are --config FILE and
--set KEY=VALUE, as for the daemon. Keys keep their revisions and versions; history before is compacted, and the store's
revision is N (1) higher. Stop what writes to the old store first: later writes are not imported. The password of NAME is
kept; those of other users cannot be read, and have to be set again (--without-passwords says that this is known).";

type Link = InterceptedService<Channel, Token>;

/// What the command line says.
#[derive(Debug, Default, PartialEq)]
struct Words {
    from: Vec<String>,
    files: TlsPaths,
    user: String,
    password_file: String,
    without_passwords: bool,
    raise: Option<i64>,
    settings: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
struct TlsPaths {
    ca: String,
    cert: String,
    key: String,
}

/// Runs the subcommand.
///
/// # Errors
/// When the words make no sense, the source cannot be read, or the disk fails.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let words = parse(words)?;
    let config = tools::settings(&words.settings)?;
    // Members that are imported one by one would begin with different states.
    ensure!(
        config.first_members()?.len() == 1,
        "initial_cluster names several members: import into one, then add the others to it"
    );
    let dir = Path::new(&config.data_dir);
    tools::prepare(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mark, applied) = runtime.block_on(read(&words))?;
    let revision = tools::make(&config, mark, applied, words.raise.unwrap_or(RAISE))?;
    println!("imported to {} at revision {revision}", dir.display());
    Ok(())
}

fn parse(words: &[String]) -> anyhow::Result<Words> {
    let mut found = Words::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let (flag, inline) =
            word.split_once('=').map_or((word.as_str(), None), |(f, v)| (f, Some(v)));
        let mut value = || {
            let next = inline.map(str::to_owned).or_else(|| rest.next().cloned());
            next.with_context(|| format!("{flag} needs a value"))
        };
        match flag {
            "--from" => found.from = bootstrap::urls(&value()?).context("--from")?,
            "--cacert" => found.files.ca = value()?,
            "--cert" => found.files.cert = value()?,
            "--key" => found.files.key = value()?,
            "--user" => found.user = value()?,
            "--password-file" => found.password_file = value()?,
            "--without-passwords" => found.without_passwords = true,
            "--raise" => {
                let by = value()?;
                let by = by.parse().ok().filter(|by: &i64| *by >= 1);
                found.raise = Some(by.context("--raise takes a number from 1 on")?);
            }
            "--config" | "--set" => found.settings.extend([flag.to_owned(), value()?]),
            _ => bail!("{HELP}"),
        }
    }
    ensure!(!found.from.is_empty(), "{HELP}");
    ensure!(
        found.user.is_empty() == found.password_file.is_empty(),
        "--user and --password-file go together"
    );
    let secure = found.from.iter().any(|url| url.starts_with("https://"));
    ensure!(!secure || !found.files.ca.is_empty(), "--from has https, so --cacert is needed");
    Ok(found)
}

/// Everything that the source has.
async fn read(words: &Words) -> anyhow::Result<(Mark, Applied)> {
    let TlsPaths { ca, cert, key } = &words.files;
    let files = TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
    let channel = reach(&words.from, files.client()?.as_ref()).await?;
    let password = match words.password_file.as_str() {
        "" => String::new(),
        file => std::fs::read_to_string(file).with_context(|| format!("read {file}"))?,
    };
    let login = Login { name: &words.user, password: password.trim_end_matches(['\r', '\n']) };
    let (link, enabled) = login.begin(channel).await?;
    let mut keys = Keys::default();
    keys.read(&link).await?;
    let leases = leases(&link, keys.leases).await?;
    let count = keys.records.len();
    eprintln!("{count} keys and {} leases at revision {}", leases.len(), keys.revision);
    let auth = users(&link, &login, enabled, words.without_passwords).await?;
    let summary = Summary { revision: keys.revision, compacted: -1, leases, alarms: Vec::new() };
    let mut mvcc = Mvcc::begin(&summary);
    keys.records.sort_unstable_by_key(|kv| kv.mod_revision);
    let mut at = Revision { main: 0, sub: 0 };
    for kv in keys.records {
        // The order within a transaction cannot be read; the history that shows it is not there either.
        let sub = if kv.mod_revision == at.main { at.sub + 1 } else { 0 };
        at = Revision { main: kv.mod_revision, sub };
        let put = Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None };
        mvcc.load(at, &put);
    }
    Ok((keys.mark, Applied { mvcc, auth, ..Applied::default() }))
}

/// The first of the members that answers.
async fn reach(urls: &[String], tls: Option<&ClientTls>) -> anyhow::Result<Channel> {
    let mut refusals = Vec::new();
    for url in urls {
        let channel = daemon::channel::connect(url, tls)?;
        match MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await {
            // Whoever refuses a stranger is there.
            Err(status) if status.code() == Code::Unavailable || status.code() == Code::Unknown => {
                refusals.push(format!("{url}: {}", explain(&status)));
            }
            _ => return Ok(channel),
        }
    }
    bail!("no member of the source answers: {}", refusals.join("; "))
}

/// What a failure says, down to its first cause.
fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Says who asks.
#[derive(Debug, Clone)]
struct Token(Option<AsciiMetadataValue>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// Who reads; nobody if the name is empty.
struct Login<'a> {
    name: &'a str,
    password: &'a str,
}

impl Login<'_> {
    /// Logs in, and finds out whether that is needed: versions before 3.5 do not say so in any other way.
    async fn begin(&self, channel: Channel) -> anyhow::Result<(Link, bool)> {
        let (name, password) = (self.name.to_owned(), self.password.to_owned());
        let mut client = AuthClient::new(channel.clone());
        let (token, enabled) =
            match client.authenticate(AuthenticateRequest { name, password }).await {
                Ok(answer) => (Some(answer.into_inner().token.parse()?), true),
                Err(status) if status.message() == AUTH_NOT_ENABLED => (None, false),
                // A client certificate may say who we are.
                Err(_) if self.name.is_empty() => (None, true),
                Err(status) => bail!("log in as {}: {}", self.name, explain(&status)),
            };
        Ok((InterceptedService::new(channel, Token(token)), enabled))
    }
}

/// The keys at one revision.
#[derive(Default)]
struct Keys {
    revision: i64,
    mark: Mark,
    records: Vec<KeyValue>,
    leases: BTreeSet<i64>,
}

impl Keys {
    async fn read(&mut self, link: &Link) -> anyhow::Result<()> {
        let mut client = KvClient::new(link.clone()).max_decoding_message_size(PAGE_BYTES_MAX);
        let (mut from, mut limit, mut all) = (Bytes::from_static(&[0]), FIRST_PAGE_KEYS, 0);
        let mut said = 0;
        loop {
            let request = RangeRequest {
                key: from,
                range_end: Bytes::from_static(&[0]),
                limit,
                revision: self.revision,
                ..RangeRequest::default()
            };
            let answer = client.range(request).await.map_err(|status| refused(&status))?;
            let RangeResponse { header, kvs, more, count } = answer.into_inner();
            if self.revision == 0 {
                let header = header.context("an answer without a header")?;
                self.revision = header.revision;
                self.mark = Mark { index: header.cluster_id, term: header.raft_term };
                all = count;
            }
            limit = next_limit(&kvs);
            self.take(kvs);
            let found = self.records.len();
            if found / KEYS_PER_LINE > said {
                said = found / KEYS_PER_LINE;
                eprintln!("{found} of {all} keys");
            }
            let last = self.records.last().filter(|_| more);
            let Some(last) = last else { break };
            from = Bytes::from([last.key.as_ref(), &[0]].concat());
        }
        let found = i64::try_from(self.records.len())?;
        ensure!(found == all, "the source said {all} keys and gave {found}: try again");
        Ok(())
    }

    /// Each in memory of its own: a slice would keep its whole page alive.
    fn take(&mut self, kvs: Vec<KeyValue>) {
        self.leases.extend(kvs.iter().map(|kv| kv.lease).filter(|lease| *lease != 0));
        self.records.extend(kvs.into_iter().map(|kv| KeyValue {
            key: Bytes::copy_from_slice(&kv.key),
            value: Bytes::copy_from_slice(&kv.value),
            ..kv
        }));
    }
}

/// How many keys like those of the last page make a page.
fn next_limit(kvs: &[KeyValue]) -> i64 {
    let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    let mean = bytes / kvs.len().max(1);
    i64::try_from(PAGE_BYTES / mean.max(1)).unwrap_or(PAGE_KEYS_MAX).clamp(1, PAGE_KEYS_MAX)
}

/// Why keys cannot be read, and what to do.
fn refused(status: &Status) -> anyhow::Error {
    let what_to_do = match status.message() {
        "etcdserver: user name is empty" => "it asks for --user and --password-file",
        "etcdserver: permission denied" => "the user needs the role root",
        "etcdserver: mvcc: required revision has been compacted" => {
            "the source was compacted while it was read: stop its clients, or try again"
        }
        _ => return anyhow::anyhow!("read keys: {}", explain(status)),
    };
    anyhow::anyhow!("read keys: {}: {what_to_do}", status.message())
}

/// Every lease with its granted life: those that there are, and those that keys had.
async fn leases(link: &Link, of_keys: BTreeSet<i64>) -> anyhow::Result<Vec<(i64, i64)>> {
    let client = LeaseClient::new(link.clone()).max_decoding_message_size(PAGE_BYTES_MAX);
    let listed = client.clone().lease_leases(LeaseLeasesRequest {}).await;
    let listed = listed.map_err(|status| anyhow::anyhow!("list leases: {}", explain(&status)))?;
    let mut ids: BTreeSet<i64> = listed.into_inner().leases.iter().map(|lease| lease.id).collect();
    ids.extend(&of_keys);
    let asking = ids.into_iter().map(|id| {
        let (mut client, asked) = (client.clone(), LeaseTimeToLiveRequest { id, keys: false });
        async move {
            let answer = client.lease_time_to_live(asked).await;
            let answer = answer.map_err(|s| anyhow::anyhow!("lease {id:x}: {}", explain(&s)))?;
            Ok::<_, anyhow::Error>((id, answer.into_inner()))
        }
    });
    let answers: Vec<_> = stream::iter(asking).buffered(LEASES_AT_ONCE).try_collect().await?;
    let lives = answers.into_iter().filter_map(|(id, answer)| match answer.ttl {
        // It ended after its keys were read: they are to end, too.
        ..0 if of_keys.contains(&id) => Some((id, TTL_S_MIN)),
        ..0 => None,
        _ => Some((id, answer.granted_ttl)),
    });
    Ok(lives.collect())
}

/// Users and roles. Only the password of who reads is known.
async fn users(
    link: &Link,
    login: &Login<'_>,
    enabled: bool,
    without_passwords: bool,
) -> anyhow::Result<Auth> {
    let failed = |status: Status| anyhow::anyhow!("read users and roles: {}", explain(&status));
    let mut client = AuthClient::new(link.clone());
    let mut auth = Auth::default();
    let mut change = |what: What| auth.apply(&Change { what: Some(what) }).map(drop);
    let roles = client.role_list(AuthRoleListRequest {}).await.map_err(failed)?.into_inner().roles;
    for name in roles {
        let asked = AuthRoleGetRequest { role: name.clone() };
        let role = client.role_get(asked).await.map_err(failed)?.into_inner();
        change(What::RoleAdd(AuthRoleAddRequest { name: name.clone() }))?;
        for perm in role.perm {
            let grant = AuthRoleGrantPermissionRequest { name: name.clone(), perm: Some(perm) };
            change(What::RoleGrant(grant)).with_context(|| format!("role {name}"))?;
        }
    }
    let users = client.user_list(AuthUserListRequest {}).await.map_err(failed)?.into_inner().users;
    let others: Vec<&str> =
        users.iter().map(String::as_str).filter(|name| !enabled || *name != login.name).collect();
    ensure!(
        others.is_empty() || without_passwords,
        "passwords cannot be read, so these users need new ones: {}; if that is well, say \
         --without-passwords",
        others.join(", ")
    );
    let mut root_can_log_in = false;
    for name in &users {
        let known = enabled && *name == login.name;
        let hashed_password = if known {
            let salt: [u8; SALT_BYTES] = rand::random();
            password::hash(login.password, salt)
        } else {
            String::new()
        };
        let new = AuthUserAddRequest {
            name: name.clone(),
            hashed_password,
            ..AuthUserAddRequest::default()
        };
        change(What::UserAdd(new))?;
        let asked = AuthUserGetRequest { name: name.clone() };
        let user = client.user_get(asked).await.map_err(failed)?.into_inner();
        for role in user.roles {
            root_can_log_in |= known && role == ROOT;
            let grant = AuthUserGrantRoleRequest { user: name.clone(), role };
            change(What::UserGrant(grant)).with_context(|| format!("user {name}"))?;
        }
    }
    if enabled {
        ensure!(
            root_can_log_in,
            "the source asks its clients who they are: give --user and --password-file of one with \
             the role root, or nobody could set passwords in the new store"
        );
        change(What::Enable(AuthEnableRequest {})).context("authentication")?;
    }
    Ok(auth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> anyhow::Result<Words> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn words_are_read_or_refused_with_what_is_missing() {
        let found = words("--from=http://h:1,http://g:2/ --raise 7 --set a=b=c").unwrap();
        assert_eq!(found.from, ["http://g:2", "http://h:1"]);
        assert_eq!((found.raise, found.settings), (Some(7), vec!["--set".into(), "a=b=c".into()]));
        for (text, expected) in [
            ("", HELP),
            ("--from http://h:1 --else", HELP),
            ("--from", "--from needs a value"),
            ("--from h:1", "--from"),
            ("--from https://h:1", "--from has https, so --cacert is needed"),
            ("--from http://h:1 --user u", "--user and --password-file go together"),
            ("--from http://h:1 --raise 0", "--raise takes a number from 1 on"),
        ] {
            assert_eq!(words(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn pages_hold_about_the_same_bytes_whatever_the_keys() {
        let page = |bytes: usize, count: usize| {
            vec![KeyValue { value: vec![0; bytes].into(), ..KeyValue::default() }; count]
        };
        assert_eq!(next_limit(&[]), PAGE_KEYS_MAX);
        assert_eq!(next_limit(&page(1, 10)), PAGE_KEYS_MAX);
        assert_eq!(next_limit(&page(4096, 64)), 1024);
        assert_eq!(next_limit(&page(8 << 20, 1)), 1);
    }
}
