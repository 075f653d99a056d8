//! StatefulSets: pods with a number, a name and volumes of their own, made and unmade one after the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::act::controlled_by;
use client::{Action, Cache, Controller, Key, Plan, Wake};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use serde_json::{Value, json};

use crate::pods::{adopters, available_in, claim, is_ended, is_ready, orphans, picks, share};
use crate::revisions::{self, HASH, Newest, hash_of};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A StatefulSet with its pods, claims and history.
#[derive(Debug)]
pub struct Seen {
    set: Arc<StatefulSet>,
    /// Controlled by the set, selected or not.
    own: Vec<Arc<Pod>>,
    /// Selected, named like one of the set's, and controlled by nobody.
    orphans: Vec<Arc<Pod>>,
    /// The claims of its namespace that its templates select.
    claims: Vec<Arc<PersistentVolumeClaim>>,
    revisions: Vec<Arc<ControllerRevision>>,
    /// Names of revisions that belong to others.
    taken: BTreeSet<String>,
}

/// The controller.
#[derive(Debug)]
pub struct StatefulSets;

fn selector(set: &StatefulSet) -> Option<&LabelSelector> {
    set.spec.as_ref().map(|s| &s.selector)
}

/// The number of a pod of this set, by its name.
fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let number = name.strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    number.parse().ok().filter(|n: &i32| n.to_string() == number)
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[
        Wake::own("StatefulSet"),
        Wake::owner_of("Pod"),
        Wake::owner_of("ControllerRevision"),
        Wake::keys("Pod", |cache, changed| {
            adopters::<StatefulSet>(cache, changed, |set, pod| picks(selector(set), pod))
        }),
    ];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let set = cache.at::<StatefulSet>(key)?;
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let revisions = cache.find::<ControllerRevision>("owner", uid);
        let own: BTreeSet<_> = revisions.iter().map(|r| r.metadata.uid.clone()).collect();
        let others = cache.find::<ControllerRevision>("namespace", &key.namespace);
        let others = others.iter().filter(|r| !own.contains(&r.metadata.uid));
        let mut orphans = orphans(cache, &key.namespace, selector(&set));
        orphans.retain(|pod| ordinal(&set, pod).is_some());
        let templates: Vec<String> =
            templates(&set).map(|(name, _)| format!("{name}-{}-", key.name)).collect();
        let mut claims = Vec::new();
        if !templates.is_empty() {
            claims = cache.find::<PersistentVolumeClaim>("namespace", &key.namespace);
            claims.retain(|claim| {
                let name = claim.metadata.name.as_deref().unwrap_or_default();
                templates.iter().any(|prefix| name.starts_with(prefix))
            });
        }
        Some(Seen {
            own: cache.find::<Pod>("owner", uid),
            orphans,
            claims,
            taken: others.filter_map(|r| r.metadata.name.clone()).collect(),
            revisions,
            set,
        })
    }

    fn reconcile(seen: &Seen, now: Timestamp) -> Plan {
        let set = &*seen.set;
        let Some(spec) = &set.spec else { return Plan::new() };
        let (plan, own) = claim(Plan::new(), set, selector(set), &seen.own, &seen.orphans);
        let status = set.status.clone().unwrap_or_default();
        let taken = |name: &str| seen.taken.contains(name);
        let (plan, newest) = if set.metadata.deletion_timestamp.is_some() {
            let update = status.update_revision.clone().unwrap_or_default();
            (plan, Some(Newest { name: update, hash: String::new() }))
        } else {
            let collisions = status.collision_count;
            revisions::sync(plan, set, &spec.template, &seen.revisions, collisions, taken)
        };
        let Some(update) = newest else {
            let count = json!({"collisionCount": status.collision_count.unwrap_or(0) + 1});
            return plan.status(set, count);
        };
        // The revision of before stays current until all pods have the new one.
        let current = status.current_revision.clone().filter(|name| !name.is_empty());
        let before = current.and_then(|name| {
            let named = |r: &&Arc<ControllerRevision>| r.metadata.name.as_deref() == Some(&name);
            let revision = seen.revisions.iter().find(named)?;
            Some((name.clone(), revisions::template(revision)?))
        });
        let (current, template) =
            before.unwrap_or_else(|| (update.name.clone(), spec.template.clone()));
        let turn = Turn {
            set,
            spec,
            pods: &own,
            claims: &seen.claims,
            current: (&current, &template),
            update: (&update.name, &spec.template),
            now,
        };
        let names = own.iter().map(|pod| hash_of(pod)).chain([current.as_str(), &update.name]);
        let prefix = format!("{}-", turn.name());
        let live = names.filter_map(|name| name.strip_prefix(&prefix)).collect();
        let mut plan = revisions::prune(plan, &seen.revisions, &live, spec.revision_history_limit);
        if set.metadata.deletion_timestamp.is_none() {
            plan = turn.act(plan);
        }
        turn.status(plan, &current, &update.name)
    }
}

/// The claim templates, by name.
fn templates(set: &StatefulSet) -> impl Iterator<Item = (&str, &PersistentVolumeClaim)> {
    let templates = set.spec.iter().flat_map(|s| s.volume_claim_templates.iter().flatten());
    templates.filter_map(|t| Some((t.metadata.name.as_deref()?, t)))
}

/// One look at a set.
struct Turn<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    pods: &'a [Arc<Pod>],
    claims: &'a [Arc<PersistentVolumeClaim>],
    /// Name and template of the revision of before …
    current: (&'a str, &'a PodTemplateSpec),
    /// … and of the one to come.
    update: (&'a str, &'a PodTemplateSpec),
    now: Timestamp,
}

impl<'a> Turn<'a> {
    fn name(&self) -> &str {
        self.set.metadata.name.as_deref().unwrap_or_default()
    }

    /// The numbers that pods should have.
    fn wanted(&self) -> std::ops::Range<i32> {
        let start = self.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
        start..start.saturating_add(self.spec.replicas.unwrap_or(1))
    }

    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn pod(&self, number: i32) -> Option<&'a Pod> {
        self.pods.iter().map(|p| &**p).find(|p| ordinal(self.set, p) == Some(number))
    }

    /// Seconds until the pod counts as available; `None` if it is not ready.
    fn wait(&self, pod: &Pod) -> Option<i64> {
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        available_in(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn available(&self, pod: &Pod) -> bool {
        self.wait(pod) == Some(0)
    }

    fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy.and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
    }

    /// The first number that is updated.
    fn first_updated(&self) -> i32 {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let partition = rolling.and_then(|r| r.partition).unwrap_or(0);
        self.wanted().start.saturating_add(partition)
    }

    fn max_unavailable(&self) -> i32 {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let most = rolling.and_then(|r| r.max_unavailable.as_ref());
        share(most, self.spec.replicas.unwrap_or(1), 1).max(1)
    }

    /// The revision from which a new pod of this number is made: a pod that is lost while a roll has not come to it
    /// comes back as it was.
    fn revision(&self, number: i32) -> (&'a str, &'a PodTemplateSpec) {
        let status = self.set.status.as_ref();
        let kept = status.and_then(|s| s.current_replicas).unwrap_or(0);
        let partitioned = self.first_updated() > self.wanted().start;
        let old = if !self.rolls() {
            false
        } else if partitioned {
            number < self.first_updated()
        } else {
            number < self.wanted().start.saturating_add(kept)
        };
        if old { self.current } else { self.update }
    }

    /// What is to be done now: one thing if the set goes in order, else all that there is.
    fn act(&self, plan: Plan) -> Plan {
        let plan = self.keep_claims(plan);
        let (mut plan, go_on) = self.fill(plan);
        if !go_on {
            return plan;
        }
        let (next, go_on) = self.shrink(plan);
        plan = next;
        if go_on && self.rolls() { self.roll(plan) } else { plan }
    }

    fn delete(&self, plan: Plan, pod: &Pod) -> Plan {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let text = format!("delete Pod {name} in StatefulSet {} successful", self.name());
        let event = Action::event(self.set, "Normal", "SuccessfulDelete", text);
        plan.push(Action::delete(pod)).push(event)
    }

    /// Makes the pods that lack, and waits for those that are not well. Whether there is more to do.
    fn fill(&self, mut plan: Plan) -> (Plan, bool) {
        for number in self.wanted() {
            let Some(pod) = self.pod(number) else {
                plan = self.create(plan, number);
                if self.in_order() {
                    return (plan, false);
                }
                continue;
            };
            let leaving = pod.metadata.deletion_timestamp.is_some();
            if is_ended(pod) && !leaving {
                let text = format!(
                    "StatefulSet {}/{} is recreating {} Pod {}",
                    self.set.metadata.namespace.as_deref().unwrap_or_default(),
                    self.name(),
                    crate::pods::phase(pod).to_lowercase(),
                    pod.metadata.name.as_deref().unwrap_or_default()
                );
                plan = plan
                    .push(Action::event(self.set, "Warning", "RecreatingFailedPod", text))
                    .push(Action::delete(pod));
                if self.in_order() {
                    return (plan, false);
                }
                continue;
            }
            if !self.in_order() {
                continue;
            }
            match self.wait(pod) {
                Some(0) => {}
                Some(wait) => {
                    return (plan.requeue_after(Duration::from_secs(wait.unsigned_abs())), false);
                }
                None => {
                    // One of a revision that it should not have any more would block the way back: it goes.
                    let stale = self.rolls()
                        && !leaving
                        && number >= self.first_updated()
                        && hash_of(pod) != self.update.0;
                    return (if stale { self.delete(plan, pod) } else { plan }, false);
                }
            }
        }
        (plan, true)
    }

    fn create(&self, plan: Plan, number: i32) -> Plan {
        let pod = self.make(number);
        let mut plan = plan;
        for (template, claim) in templates(self.set) {
            let name = format!("{template}-{}-{number}", self.name());
            if self.claims.iter().any(|c| c.metadata.name.as_deref() == Some(&name)) {
                continue;
            }
            let claim = self.claim(name, claim);
            plan = plan.push(
                Action::create(&claim)
                    .announce(self.set, "SuccessfulCreate", "create Claim {} success")
                    .or_warn("FailedCreate", "create Claim failed error: {}"),
            );
        }
        let text = format!(
            "create Pod {} in StatefulSet {} successful",
            pod.metadata.name.as_deref().unwrap_or_default(),
            self.name()
        );
        let event = Action::event(self.set, "Normal", "SuccessfulCreate", text);
        plan.push(Action::create(&pod)).push(event)
    }

    fn claim(&self, name: String, template: &PersistentVolumeClaim) -> PersistentVolumeClaim {
        let mut claim = template.clone();
        claim.metadata.name = Some(name);
        claim.metadata.namespace.clone_from(&self.set.metadata.namespace);
        let labels = claim.metadata.labels.get_or_insert_default();
        let selected = self.spec.selector.match_labels.clone().unwrap_or_default();
        labels.extend(selected);
        claim.metadata.owner_references = Some(self.claim_owners(&claim, None));
        claim.status = None;
        claim
    }

    fn make(&self, number: i32) -> Pod {
        let (revision, template) = self.revision(number);
        let template = template.clone();
        let name = format!("{}-{number}", self.name());
        let mut metadata = template.metadata.unwrap_or_default();
        metadata.name = Some(name.clone());
        metadata.namespace.clone_from(&self.set.metadata.namespace);
        metadata.owner_references = Some(vec![controlled_by(self.set)]);
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(HASH.to_owned(), revision.to_owned());
        labels.insert(POD_NAME.to_owned(), name.clone());
        labels.insert(POD_INDEX.to_owned(), number.to_string());
        let mut spec = template.spec.unwrap_or_default();
        spec.hostname = Some(name.clone());
        spec.subdomain.clone_from(&self.spec.service_name);
        let mut volumes = spec.volumes.take().unwrap_or_default();
        volumes.retain(|v| templates(self.set).all(|(template, _)| template != v.name));
        for (template, _) in templates(self.set) {
            let source = PersistentVolumeClaimVolumeSource {
                claim_name: format!("{template}-{name}"),
                read_only: None,
            };
            volumes.push(Volume {
                name: template.to_owned(),
                persistent_volume_claim: Some(source),
                ..Volume::default()
            });
        }
        spec.volumes = Some(volumes).filter(|v| !v.is_empty());
        Pod { metadata, spec: Some(spec), status: None }
    }

    /// Takes away the pods that are too many, the highest number first. Whether there is more to do.
    fn shrink(&self, mut plan: Plan) -> (Plan, bool) {
        let wanted = self.wanted();
        let mut extra: Vec<(i32, &Pod)> = self
            .pods
            .iter()
            .filter_map(|pod| Some((ordinal(self.set, pod)?, &**pod)))
            .filter(|(number, _)| !wanted.contains(number))
            .collect();
        extra.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        let all = self.pods.iter().map(|p| &**p);
        let unwell = all.filter(|pod| !self.available(pod));
        let first_unwell = unwell.min_by_key(|pod| ordinal(self.set, pod));
        let first_unwell = first_unwell.and_then(|pod| pod.metadata.uid.as_deref());
        for (_, pod) in extra {
            if pod.metadata.deletion_timestamp.is_some() {
                if self.in_order() {
                    return (plan, false);
                }
                continue;
            }
            let first = first_unwell == pod.metadata.uid.as_deref();
            if self.in_order() && !self.available(pod) && !first {
                return (plan, false);
            }
            plan = self.delete(plan, pod);
            if self.in_order() {
                return (plan, false);
            }
        }
        (plan, true)
    }

    /// Deletes pods of the old revision, the highest number first, as many as may be missing at once.
    fn roll(&self, mut plan: Plan) -> Plan {
        let range = self.first_updated()..self.wanted().end;
        let all = || self.wanted().filter_map(|number| self.pod(number));
        let missing = self.wanted().len() - all().count();
        let unwell = all().filter(|pod| !self.available(pod)).count() + missing;
        let mut left = usize::try_from(self.max_unavailable()).unwrap_or(1).saturating_sub(unwell);
        for number in range.rev() {
            let Some(pod) = self.pod(number) else { continue };
            if hash_of(pod) == self.update.0 || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            // One that is not there anyway costs nothing.
            let free = !self.available(pod);
            if left == 0 && !free {
                break;
            }
            left = left.saturating_sub(usize::from(!free));
            plan = self.delete(plan, pod);
        }
        plan
    }

    /// Who owns a claim, by the set's retention policy; `condemned` is the pod that goes because the set shrinks.
    fn claim_owners(
        &self,
        claim: &PersistentVolumeClaim,
        condemned: Option<&Pod>,
    ) -> Vec<OwnerReference> {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |policy: Option<&String>| policy.is_some_and(|p| p == "Delete");
        let when_deleted = deletes(policy.and_then(|p| p.when_deleted.as_ref()));
        let when_scaled = deletes(policy.and_then(|p| p.when_scaled.as_ref()));
        let ours = |owner: &OwnerReference| {
            owner.kind == "StatefulSet" && owner.name == self.name()
                || owner.kind == "Pod" && owner.name.starts_with(&format!("{}-", self.name()))
        };
        let others = claim.metadata.owner_references.iter().flatten();
        let mut owners: Vec<OwnerReference> = others.filter(|o| !ours(o)).cloned().collect();
        let plain = |mut owner: OwnerReference| {
            owner.controller = None;
            owner.block_owner_deletion = None;
            owner
        };
        match condemned {
            Some(pod) if when_scaled => owners.push(plain(controlled_by(pod))),
            _ if when_deleted => owners.push(plain(controlled_by(self.set))),
            _ => {}
        }
        owners
    }

    /// Makes the owners of the claims what the retention policy asks for.
    fn keep_claims(&self, plan: Plan) -> Plan {
        let wanted = self.wanted();
        let changes = self.claims.iter().filter_map(|claim| {
            let name = claim.metadata.name.as_deref()?;
            let of = |(template, _): (&str, _)| {
                let number = name.strip_prefix(template)?.strip_prefix('-')?;
                number.strip_prefix(self.name())?.strip_prefix('-')?.parse::<i32>().ok()
            };
            let number = templates(self.set).find_map(of)?;
            let condemned = if wanted.contains(&number) { None } else { self.pod(number) };
            if !wanted.contains(&number) && condemned.is_none() {
                return None;
            }
            let owners = self.claim_owners(claim, condemned);
            let uids = |owners: &[OwnerReference]| -> BTreeSet<String> {
                owners.iter().map(|o| o.uid.clone()).collect()
            };
            let present = claim.metadata.owner_references.clone().unwrap_or_default();
            (uids(&owners) != uids(&present)).then(|| {
                let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
                Action::merge_if_unchanged(
                    &**claim,
                    json!({"metadata": {"ownerReferences": owners}}),
                )
            })
        });
        plan.each(changes.collect::<Vec<_>>(), |action| action)
    }

    fn status(&self, plan: Plan, current: &str, update: &str) -> Plan {
        let (mut replicas, mut ready, mut available) = (0, 0, 0);
        let (mut of_current, mut of_update) = (0, 0);
        let mut soonest: Option<i64> = None;
        // What is deleted now counts no more: its number is made anew from the revision to come.
        let going: BTreeSet<String> = plan.actions.iter().filter_map(deleted).collect();
        for pod in self.pods.iter().filter(|p| !is_ended(p)) {
            replicas += 1;
            ready += i32::from(is_ready(pod));
            available += i32::from(self.available(pod));
            if let Some(wait) = self.wait(pod).filter(|w| *w > 0) {
                soonest = Some(soonest.map_or(wait, |s| s.min(wait)));
            }
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            if pod.metadata.deletion_timestamp.is_none() && !going.contains(name) {
                of_current += i32::from(hash_of(pod) == current);
                of_update += i32::from(hash_of(pod) == update);
            }
        }
        let wanted = self.spec.replicas.unwrap_or(1);
        let complete = self.rolls() && [of_update, ready, replicas] == [wanted; 3];
        let (current, of_current) =
            if complete { (update, of_update) } else { (current, of_current) };
        let some = |n: i32| if n == 0 { Value::Null } else { json!(n) };
        let plan = plan.status(
            self.set,
            json!({
                "replicas": replicas,
                "readyReplicas": some(ready),
                "availableReplicas": available,
                "currentReplicas": some(of_current),
                "updatedReplicas": some(of_update),
                "currentRevision": current,
                "updateRevision": update,
                "observedGeneration": self.set.metadata.generation,
            }),
        );
        match soonest {
            Some(wait) => plan.requeue_after(Duration::from_secs(wait.unsigned_abs())),
            None => plan,
        }
    }
}

/// The name of the object that an action deletes.
fn deleted(action: &Action) -> Option<String> {
    match &action.op {
        client::act::Op::Delete { key, .. } => Some(key.name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
