//! Every field of every message by its number and type. Fields are only ever added: a line that changes or goes
//! away in this snapshot breaks peers and stored bytes.

use holdfast_wire::DESCRIPTORS;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

fn message_lines(prefix: &str, message: &DescriptorProto, lines: &mut Vec<String>) {
    let name = format!("{prefix}.{}", message.name());
    for field in &message.field {
        let kind = match field.type_name() {
            "" => format!("{:?}", field.r#type()).to_lowercase(),
            name => name.trim_start_matches('.').to_owned(),
        };
        let repeated = if field.label() == prost_types::field_descriptor_proto::Label::Repeated {
            "repeated "
        } else {
            ""
        };
        lines.push(format!("{name} {} = {repeated}{kind} {}", field.number(), field.name()));
    }
    message.nested_type.iter().for_each(|nested| message_lines(&name, nested, lines));
    message.enum_type.iter().for_each(|nested| enum_lines(&name, nested, lines));
}

fn enum_lines(prefix: &str, choices: &EnumDescriptorProto, lines: &mut Vec<String>) {
    for value in &choices.value {
        lines.push(format!("{prefix}.{} {} = {}", choices.name(), value.number(), value.name()));
    }
}

#[test]
fn fields_and_values_are_only_added() {
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut lines = Vec::new();
    for file in files.file.iter().filter(|file| file.package().starts_with("holdfast.")) {
        file.message_type.iter().for_each(|message| message_lines(file.package(), message, &mut lines));
        file.enum_type.iter().for_each(|choices| enum_lines(file.package(), choices, &mut lines));
        for service in &file.service {
            for method in &service.method {
                let stream = |streams| if streams { "stream " } else { "" };
                lines.push(format!(
                    "{}.{}/{} {}{} -> {}{}",
                    file.package(),
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                ));
            }
        }
    }
    assert!(lines.len() > 200, "the descriptors are there");
    insta::assert_snapshot!(lines.join("\n"));
}
