import type { GetStatusResponse } from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { useValue } from "../hooks.ts";
import { clock, type Key, moment, number, t } from "../i18n.ts";
import { Badge, Heading, Loading, Table } from "../ui/parts.tsx";
import { samples } from "./flow.ts";
import type { Measured } from "./measured.ts";
import { Plot } from "./plot.tsx";
import { SERVICES } from "./services.ts";

interface Quantity {
  name: Key;
  hint: Key;
  of: (status: GetStatusResponse) => number;
}

const PLOTTED: Quantity[] = [
  { name: "outbox", hint: "outboxHint", of: (status) => Number(status.outboxDepth) },
  { name: "lag", hint: "lagHint", of: (status) => Number(status.consumerPending) },
  { name: "inFlight", hint: "inFlightHint", of: (status) => Number(status.consumerInFlight) },
  { name: "deadLetters", hint: "deadLettersHint", of: (status) => Number(status.deadLetters) },
];

/** What the customers see of it, with the name of each line where there are several. */
const MEASURED: { name: Key; hint: Key; lines: [name: Key, of: keyof Measured][]; dots?: true }[] = [
  { name: "bookings", hint: "bookingsHint", lines: [["bookings", "bookings"]] },
  { name: "completions", hint: "completionsHint", lines: [["completions", "completions"]] },
  {
    name: "breaker",
    hint: "breakerHint",
    lines: [
      ["denied", "denied"],
      ["turnedAway", "turnedAway"],
    ],
  },
  {
    name: "toCompletion",
    hint: "toCompletionHint",
    lines: [
      ["mean", "mean"],
      ["p99", "p99"],
    ],
    dots: true, // there is a value only when somebody was completed
  },
];

const shown = (value: number | null | undefined) =>
  value === null || value === undefined ? "–" : number(Math.round(value * 100) / 100);

const age = (status: GetStatusResponse) => t("seconds", status.outboxOldestSeconds.toFixed(1));

/** How the events flow, now and in the last minutes. */
export function Flow() {
  const all = useValue(samples);
  const last = all.at(-1);
  if (!last)
    return (
      <>
        <Heading>{t("flow")}</Heading>
        <Loading />
      </>
    );
  const times = all.map((sample) => sample.time);
  return (
    <>
      <div class="between">
        <Heading>{t("flow")}</Heading>
        <p class="as-of number">{t("asOf", clock(last.time * 1000))}</p>
      </div>
      <Table
        caption={t("flow")}
        head={[
          t("service"),
          t("status"),
          ...(["outbox", "outboxAge", "lag", "inFlight", "redelivered", "deadLetters", "parked"] as const).map(
            (key) => <span class="right">{t(key)}</span>,
          ),
        ]}
      >
        {SERVICES.map((service, index) => {
          const status = last.of[service];
          const paused = status?.consumerPausedUntil;
          return (
            <tr key={service} data-service={service}>
              <th scope="row">
                <Swatch line={index + 1} /> {service}
              </th>
              <td>
                {!status ? (
                  <Badge tone="bad">{t("unreachable")}</Badge>
                ) : paused ? (
                  <Badge tone="wait">
                    {t("pausedUntil", moment(paused.seconds, Intl.DateTimeFormat().resolvedOptions().timeZone))}
                  </Badge>
                ) : (
                  <Badge tone="good">{t("running")}</Badge>
                )}
              </td>
              {(status
                ? [
                    number(status.outboxDepth),
                    age(status),
                    number(status.consumerPending),
                    number(status.consumerInFlight),
                    number(status.consumerRedelivered),
                    number(status.deadLetters),
                    number(status.parked),
                  ]
                : Array<string>(7).fill("–")
              ).map((value, column) => (
                <td key={column} class={`number ${column === 5 && status?.deadLetters ? "wrong" : ""}`}>
                  {value}
                </td>
              ))}
            </tr>
          );
        })}
      </Table>
      <p class="soft">{t("flowText")}</p>
      <div class="two plots">
        {MEASURED.map(({ name, hint, lines, dots }) => {
          const now = lines.map(([line, of]) => `${t(line)} ${shown(last.measured[of])}`).join(", ");
          return (
            <figure key={name} class="panel" data-plot={name}>
              <figcaption>
                <strong>{t(name)}</strong> <span class="soft">{t(hint)}</span>
                {lines.length > 1 && <Legend of={lines.map(([line]) => t(line))} />}
              </figcaption>
              <Plot
                times={times}
                lines={lines.map(([, of]) => all.map((sample) => sample.measured[of]))}
                label={t("plotLabel", t(name), now)}
                digits={1}
                dots={dots ?? false}
              />
            </figure>
          );
        })}
        {PLOTTED.map(({ name, hint, of }) => {
          const lines = SERVICES.map((service) =>
            all.map((sample) => (sample.of[service] ? of(sample.of[service]) : null)),
          );
          const now = SERVICES.map((service, index) => `${service} ${lines[index]?.at(-1) ?? "–"}`).join(", ");
          return (
            <figure key={name} class="panel">
              <figcaption>
                <strong>{t(name)}</strong> <span class="soft">{t(hint)}</span>
              </figcaption>
              <Plot times={times} lines={lines} label={t("plotLabel", t(name), now)} />
            </figure>
          );
        })}
      </div>
      <Legend of={SERVICES} />
    </>
  );
}

function Legend({ of }: { of: readonly string[] }) {
  return (
    <ul class="legend">
      {of.map((name, index) => (
        <li key={name}>
          <Swatch line={index + 1} /> {name}
        </li>
      ))}
    </ul>
  );
}

function Swatch({ line }: { line: number }) {
  return (
    <svg class={`swatch line-${line}`} viewBox="0 0 28 10" aria-hidden="true">
      <path d="M0 5h28" />
    </svg>
  );
}
