import { useEffect, useState } from "preact/hooks";
import type { Difference } from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { NO_LIMIT } from "../api.ts";
import { type Key, number, t } from "../i18n.ts";
import { refusal, type Refusal } from "../refusal.ts";
import { Button, Heading, Problem, Table } from "../ui/parts.tsx";
import { at, operations, type Service } from "./services.ts";

/** The proof that no place and no dose is lost or given twice. */
export function Books() {
  return (
    <>
      <Heading>{t("books")}</Heading>
      <p class="soft">{t("booksText")}</p>
      <div class="two">
        <Book service="approval" title="placesBooks" />
        <Book service="vaccinemgmt" title="stockBooks" />
      </div>
    </>
  );
}

interface Progress {
  toGo: number;
  accounts: number;
  differences: Difference[];
  complete: boolean;
  done: boolean;
}

function Book({ service, title }: { service: Service; title: Key }) {
  const [progress, setProgress] = useState<Progress | null>(null);
  const [refused, setRefused] = useState<Refusal | null>(null);
  const [leaving] = useState(() => new AbortController());
  useEffect(() => () => leaving.abort(), []);
  const check = async () => {
    setRefused(null);
    let now: Progress = { toGo: 0, accounts: 0, differences: [], complete: true, done: false };
    setProgress(now);
    try {
      for await (const told of operations.checkBooks({ service }, { ...at(service, leaving.signal), ...NO_LIMIT })) {
        now = {
          toGo: Number(told.eventsToGo),
          accounts: Number(told.accounts),
          differences: [...now.differences, ...told.differences],
          complete: told.complete,
          done: told.done,
        };
        setProgress(now);
      }
    } catch (error) {
      if (leaving.signal.aborted) return;
      setProgress(null);
      setRefused(refusal(error));
    }
  };
  return (
    <section class="panel" data-books={service} data-done={progress?.done ?? false}>
      <h2>{t(title as "placesBooks")}</h2>
      <div aria-live="polite">
        {progress && !progress.done && <p>{t("checking", progress.toGo, progress.accounts)}</p>}
        {progress?.done && (
          <div class={`notice ${progress.differences.length ? "bad" : "good"}`}>
            <p>
              <strong>
                {progress.differences.length
                  ? t("booksDiffer", progress.differences.length)
                  : t("booksAgree", progress.accounts)}
              </strong>
            </p>
            {!progress.complete && <p>{t("booksIncomplete")}</p>}
          </div>
        )}
      </div>
      {refused && <Problem refused={refused} title={t("ranOut")} />}
      {progress && progress.differences.length > 0 && (
        <Table
          caption={t("booksDiffer", progress.differences.length)}
          head={[
            t("account"),
            t("whatDiffers"),
            <span class="right">{t("byStore")}</span>,
            <span class="right">{t("byOther")}</span>,
          ]}
        >
          {progress.differences.map((one, index) => (
            <tr key={index}>
              <th scope="row">{one.account}</th>
              <td>{one.quantity}</td>
              <td class="number">{number(one.store)}</td>
              <td class="number">
                {number(one.other)} <span class="soft">({one.countedFrom})</span>
              </td>
            </tr>
          ))}
        </Table>
      )}
      <div class="actions start">
        <Button kind="main" onClick={check}>
          {t("check")}
        </Button>
      </div>
    </section>
  );
}
