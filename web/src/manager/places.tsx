import { useState } from "preact/hooks";
import { HospitalService } from "../../gen/vaccination/approval/v1/hospital_service_pb.js";
import type { DayAvailability } from "../../gen/vaccination/approval/v1/hospital_pb.js";
import { hospitals } from "../api.ts";
import { dayIn, daysBetween, isDay, plusDays } from "../days.ts";
import { perform } from "../doing.ts";
import { useEvery, useLoaded } from "../hooks.ts";
import { longDay, number, shortDay, t } from "../i18n.ts";
import { Act } from "../ui/act.tsx";
import { AsOf, Badge, Button, Empty, Heading, Input, Link, Read, Table, Words } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import type { Here } from "./staff.ts";

const DAYS = 366;
const SHOWN = 31;
const REFRESHED = 20_000;

type Doing = { what: "capacity"; day?: string } | { what: "callOff" | "reopen"; day: DayAvailability };

/** How many places the days have, and whether they take place. */
export function Places({ hospital }: Here) {
  const today = dayIn(hospital.timeZone, Date.now());
  const [count, setCount] = useState(SHOWN);
  const [act, setAct] = useState<Doing | null>(null);
  const list = useLoaded(
    (signal) =>
      hospitals.listAvailability(
        { hospitalId: hospital.hospitalId, firstDate: today, lastDate: plusDays(today, DAYS - 1) },
        { signal },
      ),
    [hospital.hospitalId, today],
  );
  useEvery(REFRESHED, () => void list.reload());
  const asOf = list.data?.asOfTime;
  const days = list.data?.days ?? [];
  const done = (text: string) => {
    setAct(null);
    say(text);
    void list.reload();
  };
  return (
    <>
      <div class="between">
        <Heading>{t("places")}</Heading>
        <Button kind="main" onClick={() => setAct({ what: "capacity" })}>
          {t("setCapacity")}
        </Button>
      </div>
      <AsOf at={asOf ? Number(asOf.seconds) * 1000 : undefined} zone={hospital.timeZone} onRefresh={list.reload} />
      <Read from={list}>
        {() =>
          days.length ? (
            <Table
              caption={t("places")}
              head={[
                t("day"),
                ...(["capacity", "approved", "leftColumn"] as const).map((key) => <span class="right">{t(key)}</span>),
                t("status"),
                <span class="unseen">{t("what")}</span>,
              ]}
            >
              {days.slice(0, count).map((day) => (
                <tr key={day.date}>
                  <th scope="row" class="nowrap">
                    <Link href={`/manager?day=${day.date}`}>{shortDay(day.date)}</Link>
                  </th>
                  <td class="number">{number(day.capacity)}</td>
                  <td class="number">{number(day.approved)}</td>
                  <td class="number strong">{number(day.left)}</td>
                  <td class={day.calledOff ? "words" : ""}>
                    {day.calledOff && (
                      <>
                        <Badge tone="bad">{t("calledOff")}</Badge> <span class="soft">“{day.calledOff}”</span>
                      </>
                    )}
                    {day.over > 0 && <Badge tone="wait">{t("over", day.over)}</Badge>}
                    {!day.calledOff && !day.over && day.left < 1 && <Badge tone="over">{t("full")}</Badge>}
                  </td>
                  <td>
                    <div class="row-actions">
                      {day.calledOff ? (
                        <Button class="small" onClick={() => setAct({ what: "reopen", day })}>
                          {t("reopen")}
                        </Button>
                      ) : (
                        <>
                          <Button class="small" onClick={() => setAct({ what: "capacity", day: day.date })}>
                            {t("setCapacity")}
                          </Button>
                          <Button kind="quiet" class="small" onClick={() => setAct({ what: "callOff", day })}>
                            {t("callOff")}
                          </Button>
                        </>
                      )}
                    </div>
                  </td>
                </tr>
              ))}
            </Table>
          ) : (
            <Empty title={t("noCapacity")} />
          )
        }
      </Read>
      {days.length > count && (
        <Button onClick={() => setCount(count + SHOWN)}>{t("showMore", days.length - count)}</Button>
      )}
      {act?.what === "capacity" && (
        <Capacity hospital={hospital} days={days} first={act.day ?? today} onDone={done} onClose={() => setAct(null)} />
      )}
      {act?.what === "callOff" && (
        <CallOff hospital={hospital} day={act.day} onDone={done} onClose={() => setAct(null)} />
      )}
      {act?.what === "reopen" && (
        <Reopen hospital={hospital} day={act.day} onDone={done} onClose={() => setAct(null)} />
      )}
    </>
  );
}

type Props = Here & { onDone: (text: string) => void; onClose: () => void };

function Capacity({
  hospital,
  days,
  first,
  onDone,
  onClose,
}: Props & { days: readonly DayAvailability[]; first: string }) {
  const [form, setForm] = useState({
    first,
    last: first,
    capacity: String(days.find((one) => one.date === first)?.capacity ?? ""),
  });
  const known = new Map(days.map((one) => [one.date, one]));
  const capacity = Number(form.capacity);
  const length = isDay(form.first) && isDay(form.last) ? daysBetween(form.first, form.last) + 1 : 0;
  const valid = length > 0 && length <= DAYS && form.capacity !== "" && Number.isInteger(capacity) && capacity >= 0;
  const effects: string[] = [];
  if (valid) {
    const its = Array.from({ length }, (_, index) => plusDays(form.first, index));
    effects.push(t("capacityEffect", length, its.filter((date) => known.get(date)?.capacity !== capacity).length));
    for (const date of its) {
      const over = (known.get(date)?.approved ?? 0) - capacity;
      if (over > 0) effects.push(t("capacityOver", shortDay(date), over));
    }
  }
  const title = t("setCapacity");
  return (
    <Act
      title={title}
      label={title}
      effects={effects}
      run={() =>
        perform(
          HospitalService.method.setDailyCapacity,
          { hospitalId: hospital.hospitalId, firstDate: form.first, lastDate: form.last, capacity },
          title,
        )
      }
      onDone={(response) => onDone(t("capacitySet", response.daysChanged))}
      onClose={onClose}
    >
      <div class="form">
        <Input
          label={t("firstDay")}
          type="date"
          value={form.first}
          onText={(first) => setForm({ ...form, first, last: form.last < first ? first : form.last })}
        />
        <Input
          label={t("lastDay")}
          error={length < 1 ? t("badRange") : undefined}
          type="date"
          value={form.last}
          onText={(last) => setForm({ ...form, last })}
        />
        <Input
          label={t("perDay")}
          type="number"
          min="0"
          max="1000000"
          required
          value={form.capacity}
          onText={(capacity) => setForm({ ...form, capacity })}
        />
      </div>
    </Act>
  );
}

const LOOKED_AT = 1500;

function CallOff({ hospital, day, onDone, onClose }: Props & { day: DayAvailability }) {
  const [note, setNote] = useState("");
  const [toGo, setToGo] = useState<number | null>(null);
  const title = t("callOffTitle", longDay(day.date));
  const request = { hospitalId: hospital.hospitalId, date: day.date, note: note.trim() };
  useEvery(LOOKED_AT, () => {
    // The call may be repeated, and tells how many bookings are still to end.
    if (toGo)
      hospitals.callOffDay(request).then(
        (response) => setToGo(response.bookingsToGo),
        () => {},
      );
  });
  if (toGo === 0) queueMicrotask(() => onDone(t("bookingsToGo", 0)));
  return (
    <Act
      title={title}
      label={t("callOffIt")}
      danger
      effects={toGo === null ? [t("callOffEffect", day.approved)] : [t("bookingsToGo", toGo)]}
      ready={note.trim() !== "" && toGo === null}
      run={() => perform(HospitalService.method.callOffDay, request, title)}
      onDone={(response) => setToGo(response.bookingsToGo)}
      onClose={onClose}
    >
      <Words label={t("noteToCustomers")} value={note} readOnly={toGo !== null} onText={setNote} />
    </Act>
  );
}

function Reopen({ hospital, day, onDone, onClose }: Props & { day: DayAvailability }) {
  const title = t("reopenTitle", longDay(day.date));
  return (
    <Act
      title={title}
      label={t("reopen")}
      effects={[t("reopenEffect", Math.max(0, day.capacity - day.approved))]}
      run={() => perform(HospitalService.method.reopenDay, { hospitalId: hospital.hospitalId, date: day.date }, title)}
      onDone={() => onDone(t("done"))}
      onClose={onClose}
    />
  );
}
