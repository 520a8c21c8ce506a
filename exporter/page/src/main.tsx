// SPDX-License-Identifier: Apache-2.0

import "uplot/dist/uPlot.min.css";
import "./style.css";

import { h, render } from "preact";
import { useEffect, useReducer, useState } from "preact/hooks";
import { change, link, useAddress } from "./address";
import { get, type Recent } from "./api";
import { Container } from "./container";
import { clock, duration, safe, units, type Unit } from "./format";
import { Health } from "./health";
import { History } from "./history";
import { Model } from "./model";
import { Now } from "./now";
import { Quotas } from "./quotas";
import { Choice, Host, useTick } from "./shared";
import { follow } from "./stream";

const views: Record<string, string> = { now: "Now", history: "History", quotas: "Quotas", health: "Health" };

/** What the page without scripts has, and what others read. */
const links: [path: string, text: string, what: string][] = [
  ["metrics", "Metrics", "for Prometheus"],
  ["api/v1/containers", "Containers", "as JSON"],
  ["api/v1/history", "History", "usage by day, as JSON or CSV"],
  ["api/v1/quotas", "Quotas", "and how they stand, as JSON"],
  ["api/v1/alerts", "Alerts", "as JSON"],
  ["api/v1/checks", "Checks", "of what this host can do, as JSON"],
  ["readyz", "Readiness", ""],
  ["healthz", "Health", ""],
  ["version", "Version", ""],
];

const unitKey = "nettally.unit";

/** The unit that was chosen last, where the browser keeps something for us. */
function keptUnit(): string {
  try {
    return localStorage.getItem(unitKey) ?? "";
  } catch {
    return "";
  }
}

function App() {
  const address = useAddress();
  const [kept, keep] = useState(keptUnit);
  const wanted = address.set.get("unit") ?? kept;
  const unit: Unit = wanted in units ? (wanted as Unit) : "iec";
  const setUnit = (u: string) => {
    try {
      localStorage.setItem(unitKey, u);
    } catch {
      // It is in the address.
    }
    keep(u);
    change({ unit: u === "iec" ? "" : u });
  };
  const title = address.view === "container" ? "Container" : (views[address.view] ?? "Now");
  useEffect(() => {
    document.title = `${title} · nettally`;
    scrollTo(0, 0);
  }, [address.view, address.of]);
  return (
    <div class="page">
      <a class="skip" href="#main" onClick={(e) => (e.preventDefault(), document.getElementById("main")!.focus())}>Skip to the numbers</a>
      <Header view={address.view} unit={unit} setUnit={setUnit} />
      <Banner />
      <main id="main" tabIndex={-1}>
        {address.view === "container" ? <Container key={address.of} id={address.of} unit={unit} />
          : address.view === "history" ? <History address={address} unit={unit} />
          : address.view === "quotas" ? <Quotas address={address} />
          : address.view === "health" ? <Health />
          : <Now address={address} unit={unit} />}
      </main>
      <footer><nav aria-label="Other pages"><ul>{links.map(([path, text, what]) => <li key={path}><a href={path}>{text}</a>{what && ` ${what}`}</li>)}</ul></nav></footer>
    </div>
  );
}

function Header({ view, unit, setUnit }: { view: string; unit: Unit; setUnit(u: string): void }) {
  const model = useTick();
  const firing = model.alerts.size;
  const live = model.waitingSince === null && model.started;
  const kept = unit === "iec" ? {} : { unit };
  return (
    <header>
      <a class="brand" href={link("now", "", kept)}>nettally</a>
      <nav aria-label="Views">
        {Object.entries(views).map(([id, title]) => (
          <a key={id} href={link(id, "", kept)} {...((view in views ? view : "now") === id && view !== "container" ? { "aria-current": "page" as const } : {})}>
            {title}{id === "quotas" && firing > 0 && <span class="badge" title={`${firing} alerts fire`}>{firing}<span class="hidden"> alerts fire</span></span>}
          </a>
        ))}
      </nav>
      <span class={`pulse ${live ? "on" : ""}`}><span class="dot" aria-hidden="true" />{live ? "live" : "waiting"}{live && model.takenAt && <time>{clock(model.takenAt)}</time>}</span>
      <Choice label="Unit" value={unit} of={units} set={setUnit} />
    </header>
  );
}

/** Says that the numbers stand still, and why. */
function Banner() {
  const model = useTick();
  const since = model.waitingSince;
  const [why, setWhy] = useState("");
  const [, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => {
    if (since === null) return setWhy("");
    const ask = () => get("readyz").then(() => setWhy(""), (err) => setWhy(String(err.message)));
    const timer = setInterval(() => (again(null as never), ask()), 2_000);
    ask();
    return () => clearInterval(timer);
  }, [since]);
  const waits = since !== null && Date.now() - since > 1_500;
  return (
    <div class="banner" role="status">
      {waits && <p>Waiting for nettally for {duration(Date.now() - since)}{why && ` (${safe(why)})`}. {model.takenAt ? `The numbers are those of ${clock(model.takenAt)}.` : ""} This page goes on by itself.</p>}
    </div>
  );
}

const model = new Model();
let asked = false;

/** Asks for the minutes before the stream, and again soon if that fails. */
async function fill(): Promise<void> {
  if (asked) return;
  asked = true;
  try {
    model.fill(await get<Recent>("api/v1/recent"));
  } catch {
    // The plot begins with the stream.
  } finally {
    asked = false;
  }
}

model.onGap = () => void fill();
const script = document.currentScript as HTMLScriptElement;
follow(new URL(script.dataset["worker"]!, document.baseURI).href, new URL("api/v1/stream?interval=1s", document.baseURI).href, (m) => model.hear(m));
const root = document.getElementById("app")!;
root.textContent = "";
render(<Host.Provider value={model}><App /></Host.Provider>, root);
