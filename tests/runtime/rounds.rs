//! Many lives of containers in one shim: what `alone` finds afterwards must be what was there.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use crate::alone::{Left, alone, threads};
use crate::pod::{Pod, process, sh, target};

/// Resident memory of this process, in pages.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_lives() {
    alone(async |pod: &mut Pod| {
        let mut first = None;
        for round in 0..100 {
            assert_eq!(pod.ran("c", &sh("exit 3")).await, (3, String::new()));
            assert_eq!(pod.events().await.len(), 4);
            if round == 20 {
                first = Some((Left::now(&pod.dir), resident()));
            }
        }
        let (left, pages) = first.unwrap();
        left.compare(&pod.dir).await;
        assert!(resident() < pages + 100, "{pages} pages became {}", resident());
        assert_eq!(threads(), 1);
    });
}

#[test]
fn a_hundred_execs() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "sleep 100").await;
        pod.executed("c", "e", &process("true")).await;
        let left = Left::now(&pod.dir);
        for n in 0..100 {
            let (status, output) =
                pod.executed("c", "e", &process(&format!("echo {n}; exit {n}"))).await;
            assert_eq!((status, output), (n, format!("{n}\n")));
        }
        left.compare(&pod.dir).await;
    });
}

#[test]
fn many_at_once() {
    alone(async |pod: &mut Pod| {
        let ids: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
        let mut lives = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            pod.write_bundle(id, &sh(&format!("exit {n}")));
            let (shim, request, at) = (Arc::clone(&pod.shim), pod.request(id), target(id, ""));
            lives.push(tokio::spawn(async move {
                shim.clone().create(request).await.unwrap();
                shim.clone().start(at.clone()).await.unwrap();
                let exit = shim.wait(&at).await.unwrap();
                assert_eq!(shim.delete(at).await.unwrap().exit, exit);
                exit.status
            }));
        }
        for (n, life) in lives.into_iter().enumerate() {
            assert_eq!(life.await.unwrap(), n as u32);
        }
        // Each container's own events in order, whatever came between.
        let mut by_id: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in pod.events().await {
            let mut words = event.split(' ');
            let (what, id) = (words.next().unwrap(), words.next().unwrap());
            by_id.entry(id.to_owned()).or_default().push(what.to_owned());
        }
        assert_eq!(by_id.len(), 20);
        for (id, events) in by_id {
            assert_eq!(events, ["create", "start", "exit", "delete"], "{id}");
        }
        assert_eq!(threads(), 1);
    });
}
