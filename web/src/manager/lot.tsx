import { Code, ConnectError } from "@connectrpc/connect";
import { useEffect, useState } from "preact/hooks";
import { type Lot, type Movement, MovementKind, WriteOffReason } from "../../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import { RecallService, type Recall } from "../../gen/vaccination/vaccinemgmt/v1/recall_service_pb.js";
import { VaccinemgmtService } from "../../gen/vaccination/vaccinemgmt/v1/vaccinemgmt_service_pb.js";
import { dayIn, isDay } from "../days.ts";
import { perform } from "../doing.ts";
import { useAll, useEvery } from "../hooks.ts";
import {
  manufacturerName,
  moment,
  movementName,
  nameOf,
  number,
  plainDay,
  t,
  vaccineName,
  writeOffName,
} from "../i18n.ts";
import { Act } from "../ui/act.tsx";
import { AsOf, Button, Empty, Facts, Field, Heading, Input, Link, Read, Table, Words } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import { Bar, Expiry } from "./lots.tsx";
import { type Here, recalls, stock, useLots } from "./staff.ts";

type Doing = "correct" | "writeOff" | "recall";

/** One lot: its doses, its ledger, and what can be done about it. */
export function LotPage({ hospital, lotId }: Here & { lotId: string }) {
  const lots = useLots(hospital.hospitalId);
  const ledger = useAll(
    (which, signal) => stock.listMovements({ lotId, ...which }, { signal }),
    (page) => page.movements,
    [lotId],
  );
  const [act, setAct] = useState<Doing | null>(null);
  const today = dayIn(hospital.timeZone, Date.now());
  const reload = () => {
    void lots.reload();
    void ledger.reload();
  };
  const done = (text: string) => {
    setAct(null);
    say(text);
    reload();
  };
  const back = (
    <Link href="/manager/lots" class="back">
      {t("lots")}
    </Link>
  );
  return (
    <Read from={lots}>
      {(all) => {
        const lot = all.find((one) => one.lotId === lotId);
        if (!lot) return <Empty screen title={t("notFound")}>{back}</Empty>;
        return (
          <>
            <div class="between">
              <Heading before={back}>
                {t("lot")} {lot.lotNumber}
              </Heading>
              <div class="actions">
                {!lot.withdrawn && <Button onClick={() => setAct("correct")}>{t("correct")}</Button>}
                <Button onClick={() => setAct("writeOff")}>{t("writeOff")}</Button>
                {!lot.withdrawn && (
                  <Button kind="danger" onClick={() => setAct("recall")}>
                    {t("recall")}
                  </Button>
                )}
              </div>
            </div>
            {lot.withdrawn && <Recalled lot={lot} zone={hospital.timeZone} onMoved={reload} />}
            <div class="two">
              <section class="panel">
                <Facts
                  of={[
                    [t("vaccineType"), vaccineName(lot.vaccineCode)],
                    [t("manufacturer"), manufacturerName(lot.manufacturer)],
                    [t("productionDate"), plainDay(lot.productionDate)],
                    [t("expiryDate"), <Expiry lot={lot} today={today} />],
                  ]}
                />
              </section>
              <section class="panel">
                <Bar lot={lot} />
                <dl class="tally">
                  {(["free", "reserved", "administered", "writtenOff", "received"] as const).map((name) => (
                    <div key={name} class={name}>
                      <dt>{t(name)}</dt>
                      <dd>{number(lot[name])}</dd>
                    </div>
                  ))}
                </dl>
              </section>
            </div>
            <section>
              <div class="between">
                <h2>{t("ledger")}</h2>
                <AsOf at={ledger.at} zone={hospital.timeZone} onRefresh={ledger.reload} />
              </div>
              <Read from={ledger}>{(movements) => <Ledger movements={movements} zone={hospital.timeZone} />}</Read>
            </section>
            {act === "correct" && <Correct lot={lot} onDone={done} onClose={() => setAct(null)} />}
            {act === "writeOff" && <WriteOff lot={lot} onDone={done} onClose={() => setAct(null)} />}
            {act === "recall" && <RecallIt lot={lot} onDone={done} onClose={() => setAct(null)} />}
          </>
        );
      }}
    </Read>
  );
}

const SHOWN = 100;

/** Newest first, as one reads an account's statement. */
function Ledger({ movements, zone }: { movements: readonly Movement[]; zone: string }) {
  const [count, setCount] = useState(SHOWN);
  if (!movements.length) return <Empty title={t("noMovements")} />;
  const newest = movements.toReversed();
  return (
    <>
      <Table
        caption={t("ledger")}
        head={[t("when"), t("what"), <span class="right">{t("quantity")}</span>, t("who"), t("why")]}
      >
        {newest.slice(0, count).map((one) => (
          <tr key={one.movementId}>
            <td class="nowrap">{moment(one.time?.seconds, zone)}</td>
            <td>{movementName(nameOf(MovementKind, one.kind))}</td>
            <td class="number">{number(one.quantity)}</td>
            <td>{one.by}</td>
            <td>
              {[
                one.writeOffReason ? writeOffName(nameOf(WriteOffReason, one.writeOffReason)) : "",
                one.note,
                one.deliveryId,
                one.reservationIds.length === 1 ? one.reservationIds[0]?.slice(0, 8) : "",
              ]
                .filter(Boolean)
                .join(" · ")}
            </td>
          </tr>
        ))}
      </Table>
      {movements.length > count && (
        <Button onClick={() => setCount(count + SHOWN)}>{t("showMore", movements.length - count)}</Button>
      )}
    </>
  );
}

interface Props {
  lot: Lot;
  onDone: (text: string) => void;
  onClose: () => void;
}

function Correct({ lot, onDone, onClose }: Props) {
  const [requestId] = useState(() => crypto.randomUUID());
  const [form, setForm] = useState({
    production: lot.productionDate,
    expiry: lot.expiryDate,
    received: String(lot.received),
    note: "",
  });
  const received = Number(form.received);
  const effects: string[] = [];
  if (form.production !== lot.productionDate)
    effects.push(t("correctDates", t("productionDate"), plainDay(lot.productionDate), plainDay(form.production)));
  if (form.expiry !== lot.expiryDate)
    effects.push(t("correctDates", t("expiryDate"), plainDay(lot.expiryDate), plainDay(form.expiry)));
  if (effects.length && lot.reserved) effects.push(t("reservedLooked", lot.reserved));
  if (received !== lot.received) {
    effects.push(t("correctReceived", lot.received, received));
    const short = lot.received - received - lot.free;
    if (short > 0) effects.push(t("tooFewFor", Math.min(short, lot.reserved)));
  }
  const valid =
    isDay(form.production) &&
    isDay(form.expiry) &&
    form.expiry >= form.production &&
    Number.isInteger(received) &&
    received >= 0;
  const title = `${t("correctTitle")} ${lot.lotNumber}`;
  return (
    <Act
      title={title}
      label={t("correct")}
      effects={valid ? effects : []}
      ready={form.note.trim() !== ""}
      run={() =>
        perform(
          VaccinemgmtService.method.correctLot,
          {
            lotId: lot.lotId,
            requestId,
            productionDate: form.production === lot.productionDate ? "" : form.production,
            expiryDate: form.expiry === lot.expiryDate ? "" : form.expiry,
            ...(received === lot.received ? {} : { received }),
            note: form.note.trim(),
          },
          title,
        )
      }
      onDone={(response) => onDone(t("bookingsToGo", response.bookingsToGo))}
      onClose={onClose}
    >
      <div class="form">
        <Input
          label={t("productionDate")}
          type="date"
          value={form.production}
          onText={(production) => setForm({ ...form, production })}
        />
        <Input
          label={t("expiryDate")}
          error={form.expiry < form.production ? t("expiresFirst") : undefined}
          type="date"
          value={form.expiry}
          onText={(expiry) => setForm({ ...form, expiry })}
        />
        <Input
          label={t("receivedInAll")}
          type="number"
          min="0"
          value={form.received}
          onText={(received) => setForm({ ...form, received })}
        />
        <div class="whole">
          <Input
            label={t("noteWhy")}
            maxLength={500}
            required
            value={form.note}
            onText={(note) => setForm({ ...form, note })}
          />
        </div>
      </div>
    </Act>
  );
}

const REASONS = [WriteOffReason.BROKEN, WriteOffReason.COLD_CHAIN, WriteOffReason.EXPIRED, WriteOffReason.LOST];

function WriteOff({ lot, onDone, onClose }: Props) {
  const [requestId] = useState(() => crypto.randomUUID());
  const [form, setForm] = useState({ quantity: "", reason: WriteOffReason.BROKEN, note: "" });
  const quantity = Number(form.quantity);
  const valid = Number.isInteger(quantity) && quantity > 0 && quantity <= lot.free + lot.reserved;
  const fromFree = Math.min(quantity, lot.free);
  const effects = valid
    ? [
        ...(fromFree ? [t("freeEffect", lot.lotNumber, lot.free, lot.free - fromFree)] : []),
        `${t("writtenOff")}: ${number(lot.writtenOff)} → ${number(lot.writtenOff + quantity)}`,
        ...(quantity > fromFree ? [t("tooFewFor", quantity - fromFree)] : []),
      ]
    : [];
  const title = `${t("writeOffTitle")} · ${lot.lotNumber}`;
  return (
    <Act
      title={title}
      label={t("writeOff")}
      danger
      effects={effects}
      run={() =>
        perform(
          VaccinemgmtService.method.writeOffDoses,
          { lotId: lot.lotId, requestId, quantity, reason: form.reason, note: form.note.trim() },
          title,
        )
      }
      onDone={() => onDone(t("done"))}
      onClose={onClose}
    >
      <div class="form">
        <Input
          label={t("howMany")}
          hint={`${t("free")} ${number(lot.free)} · ${t("reserved")} ${number(lot.reserved)}`}
          type="number"
          min="1"
          max={lot.free + lot.reserved}
          required
          value={form.quantity}
          onText={(quantity) => setForm({ ...form, quantity })}
        />
        <Field label={t("reason")}>
          {(id) => (
            <select
              id={id}
              value={form.reason}
              onChange={(event) => setForm({ ...form, reason: Number(event.currentTarget.value) })}
            >
              {REASONS.map((reason) => (
                <option key={reason} value={reason}>
                  {writeOffName(nameOf(WriteOffReason, reason))}
                </option>
              ))}
            </select>
          )}
        </Field>
        <div class="whole">
          <Input
            label={t("note")}
            maxLength={500}
            value={form.note}
            onText={(note) => setForm({ ...form, note })}
          />
        </div>
      </div>
    </Act>
  );
}

function RecallIt({ lot, onDone, onClose }: Props) {
  const [note, setNote] = useState("");
  const title = `${t("recallTitle")} · ${lot.lotNumber}`;
  return (
    <Act
      title={title}
      label={t("recallIt")}
      danger
      effects={[t("recallEffect", lot.free, lot.reserved, lot.administered), t("recallHere")]}
      ready={note.trim() !== ""}
      run={() => {
        const { vaccineCode, manufacturer, lotNumber, hospitalId } = lot;
        const what = { vaccineCode, manufacturer, lotNumber, hospitalId, note: note.trim() };
        return perform(RecallService.method.recallLot, what, title);
      }}
      onDone={({ recall }) => onDone(t("bookingsToGo", recall?.bookingsToGo ?? 0))}
      onClose={onClose}
    >
      <Words label={t("noteToCustomers")} value={note} onText={setNote} />
    </Act>
  );
}

const LOOKED_AT = 2000;

/** That a lot is withdrawn, and how far its recall is. */
function Recalled({ lot, zone, onMoved }: { lot: Lot; zone: string; onMoved: () => void }) {
  const { recallId } = lot;
  const [recall, setRecall] = useState<Recall | undefined>();
  const [hidden, setHidden] = useState(false);
  const [list, setList] = useState(false);
  const read = () => {
    recalls.getRecall({ recallId }).then(
      (response) => {
        // The lot on the screen may be from the middle of a recall that is over by now.
        const shown = recall?.bookingsToGo ?? lot.reserved;
        if (shown !== response.recall?.bookingsToGo) onMoved();
        setRecall(response.recall);
      },
      // A recall everywhere is the operator's. Else it is read again soon.
      (error: unknown) => setHidden(ConnectError.from(error).code === Code.PermissionDenied),
    );
  };
  useEffect(() => {
    if (recallId) read();
  }, [recallId]);
  useEvery(LOOKED_AT, () => {
    if (recallId && !hidden && recall?.bookingsToGo !== 0) read();
  });
  return (
    <div class="notice bad" role="status">
      <p>
        <strong>{t("withdrawn")}</strong> “{lot.withdrawn}”
      </p>
      {recall && (
        <>
          <p>{t("recallProgress", recall.writtenOff, recall.reassigned, recall.waiting)}</p>
          <p>{t("bookingsToGo", recall.bookingsToGo)}</p>
          {!list && (
            <Button onClick={() => setList(true)}>{`${t("vaccinated")} (${number(recall.administered)})`}</Button>
          )}
          {list && <Vaccinated recallId={recallId} zone={zone} />}
        </>
      )}
    </div>
  );
}

function Vaccinated({ recallId, zone }: { recallId: string; zone: string }) {
  const list = useAll(
    (which, signal) => recalls.listVaccinated({ recallId, ...which }, { signal }),
    (page) => page.vaccinated,
    [recallId],
  );
  return (
    <Read from={list}>
      {(all) =>
        all.length ? (
          <Table caption={t("vaccinated")} head={[t("customer"), t("reservationId"), t("when")]}>
            {all.map((one) => (
              <tr key={one.reservationId}>
                <th scope="row">{one.customerId}</th>
                <td>{one.reservationId}</td>
                <td class="nowrap">{moment(one.administerTime?.seconds, zone)}</td>
              </tr>
            ))}
          </Table>
        ) : (
          <p>{t("nobodyVaccinated")}</p>
        )
      }
    </Read>
  );
}
