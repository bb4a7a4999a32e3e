// Asks the router that this page came from, in OpenAI's own dialect, and shows who answered.

const $ = id => document.getElementById(id);
const percent = share => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const hues = new Map();
const panes = [];
let facts, asking;

/** Give every expert a colour of its own, the same in all answers; golden angles keep neighbours apart. */
function hue(expert) {
  if (!hues.has(expert)) hues.set(expert, (hues.size * 137.508 + 205) % 360);
  return hues.get(expert).toFixed(1);
}

function add(parent, name, text, kind) {
  const element = parent.appendChild(document.createElement(name));
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

/** Copy a template; gives its element and its named parts. */
function stamp(id) {
  const element = $(id).content.firstElementChild.cloneNode(true);
  const parts = Object.fromEntries([...element.querySelectorAll("[data-part]")].map(part => [part.dataset.part, part]));
  return { element, ...parts };
}

function options(select, values) {
  const before = select.value;
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value)));
  if (values.some(([value]) => value === before)) select.value = before;
}

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

/** Fetch JSON; throws what the router says is wrong. */
async function fetched(path, request) {
  const reply = await fetch(path, { headers: headers(), ...request });
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => ({}));
  if (reply.status === 401) { $("key-row").hidden = false; $("key").focus(); }
  throw new Error(said.error?.message ?? `The router answered with ${reply.status}.`);
}

async function look() {
  facts = await (await fetched("page/facts")).json();
  $("key-row").hidden = !facts.keys;
  document.title = `${facts.pool} · Greylag`;
  $("pool").textContent = facts.pool;
  const count = facts.experts.length, people = new Set(facts.experts.map(name => name.split("/")[0])).size;
  $("about").textContent = facts.release
    ? `Release ${facts.release}: ${count} ${count === 1 ? "expert" : "experts"} of ${people} ${people === 1 ? "contributor" : "contributors"}.`
      + (facts.chat ? "" : " The base has no chat template, so every question is asked for itself.")
    : "No release yet: the base answers alone.";
  $("trouble").textContent = facts.trouble;
  $("trouble").hidden = !facts.trouble;
  $("most").max = facts.new_tokens;
  if (+$("most").value > facts.new_tokens) $("most").value = facts.new_tokens;
  panes.forEach(fill);
}

function fill(pane) {
  options(pane.method, [["", `the release's (${facts.method})`], ...facts.methods.map(name => [name, name])]);
  options(pane.expert, [["", "all"], ...facts.experts.map(name => [name, name])]);
  options(pane.release, [["", "newest"], ...facts.releases.map(number => [`@${number}`, `${number}`])]);
  pane.expert.disabled = !facts.single;
  pane.method.disabled = pane.expert.value !== "";
}

function open() {
  const pane = { ...stamp("pane"), messages: [] };
  pane.expert.addEventListener("change", () => { pane.method.disabled = pane.expert.value !== ""; });
  $("panes").append(pane.element);
  panes.push(pane);
  if (facts) fill(pane);
}

function model(pane) {
  const how = pane.expert.value ? `/expert:${pane.expert.value}` : pane.method.value && `/method:${pane.method.value}`;
  return `${facts.pool}${pane.release.value}${how}`;
}

/** Iterate over the events of a stream, as JSON. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The answer broke off.");
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      const data = piece.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function answer(pane, text, signal) {
  const turn = stamp("turn"), spans = [], name = model(pane);
  turn.question.textContent = text;
  pane.talk.append(turn.element);
  const shared = {
    model: name, stream: true, max_tokens: +$("most").value, temperature: +$("heat").value,
    stream_options: { include_usage: true }, greylag: { explain: true },
  };
  const messages = [...pane.messages, { role: "user", content: text }];
  const asked = facts.chat ? { ...shared, messages, logprobs: true } : { ...shared, prompt: text, logprobs: 0 };
  const path = facts.chat ? "v1/chat/completions" : "v1/completions";
  let why = null, reason = "", usage = null, at = 0, whole = "";
  const begun = performance.now();
  try {
    const reply = await fetched(path, { method: "POST", body: JSON.stringify(asked), signal });
    for await (const event of events(reply.body)) {
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const piece = choice.delta?.content ?? choice.text ?? "";
      if (piece) {
        const following = pane.talk.scrollHeight - pane.talk.scrollTop - pane.talk.clientHeight < 60;
        (spans[at] ??= add(turn.answer, "span", "")).textContent += piece;
        whole += piece;
        if (following) pane.talk.scrollTop = pane.talk.scrollHeight;
      }
      at += (choice.logprobs?.content ?? choice.logprobs?.tokens ?? []).length;
      reason = choice.finish_reason ?? reason;
      why = choice.greylag ?? why;
    }
    pane.messages = [...messages, { role: "assistant", content: whole || " " }];
  } catch (error) {
    const stopped = error.name === "AbortError";
    add(turn.element, "p", stopped ? "Stopped." : error.message, stopped ? "said" : "wrong");
    if (turn.answer.textContent === "") turn.answer.hidden = true;
  }
  if (why) explain(turn, spans, why, { seconds: (performance.now() - begun) / 1000, usage, reason });
  pane.talk.scrollTop = pane.talk.scrollHeight;
}

function explain(turn, spans, why, { seconds, usage, reason }) {
  const pace = usage ? `, ${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s` : "";
  const cut = reason === "length" ? ", cut at its longest" : "";
  turn.said.textContent = `Release ${why.release}, ${why.method}${pace}${cut}`;
  for (const { name, share } of why.experts ?? []) {
    const [contributor, expert] = name.split(/\/(.*)/s);
    const part = add(turn.bar, "span");
    part.style.setProperty("--hue", hue(name));
    part.style.flexGrow = share;
    const item = add(turn.shares, "li");
    add(item, "i").style.setProperty("--hue", hue(name));
    item.append(`${expert ?? contributor} ${percent(share)} `);
    add(item, "span", expert ? `by ${contributor}` : "");
  }
  if (!why.experts?.length) add(turn.shares, "li", "No expert answered: the base alone did.");
  const tokens = why.tokens ?? [];
  tokens.filter(token => token.of === "output").forEach((token, at) => paint(spans[at], token));
  for (const token of tokens) {
    const row = add(turn.tokens, "tr");
    add(row, "td", readable(token.token));
    add(row, "td", token.of === "output" ? "answer" : "question");
    add(row, "td", named(token));
  }
  turn.reading.hidden = tokens.length === 0;
}

function paint(span, token) {
  if (!span || !token.experts.length) return;
  span.className = "token";
  span.style.setProperty("--hue", hue(token.experts[0].name));
  span.title = named(token);
}

const named = token => token.experts.map(({ name, share }) => `${name} ${share.toFixed(2)}`).join(", ") || "none";
const readable = token => token.replace(/[\u0120\u2581]/g, " ").replace(/\u010a/g, "↵");

async function send() {
  const text = $("text").value.trim();
  if (!text || asking || !facts) return;
  $("text").value = "";
  asking = new AbortController();
  $("stop").hidden = false;
  $("send").disabled = true;
  try {
    await Promise.all(panes.map(pane => answer(pane, text, asking.signal)));
    await look();
  } catch (error) {
    $("trouble").textContent = error.message;
    $("trouble").hidden = false;
  } finally {
    asking = undefined;
    $("stop").hidden = true;
    $("send").disabled = false;
    $("text").focus();
  }
}

function begin() {
  $("ask").addEventListener("submit", event => { event.preventDefault(); send(); });
  $("text").addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") asking?.abort(); });
  $("stop").addEventListener("click", () => asking?.abort());
  $("clear").addEventListener("click", () => {
    asking?.abort();
    for (const pane of panes) { pane.messages = []; pane.talk.replaceChildren(); }
    $("text").focus();
  });
  $("compare").addEventListener("change", event => {
    if (event.target.checked) open();
    else panes.pop().element.remove();
  });
  $("key").addEventListener("change", () => look().then(() => { $("trouble").hidden = !facts.trouble; }, fail));
  open();
  look().then(() => $("text").focus(), fail);
}

function fail(error) {
  $("about").textContent = "";
  $("trouble").textContent = error.message;
  $("trouble").hidden = false;
}

begin();
